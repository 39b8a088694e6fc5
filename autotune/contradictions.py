"""Which knobs of a strategy contradict each other, whatever the model and the machine.

One function a family of knobs; each answers in words, with the rule, the value and what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autotune.knobs import (
    CheckpointScope,
    GroupPrecision,
    MasterWeights,
    ModuleGroup,
    Offload,
    Optimizer,
    Precision,
)

if TYPE_CHECKING:
    from autotune.strategy import Strategy

__all__ = ["contradiction"]


def contradiction(strategy: Strategy) -> str | None:
    """The first rule that the strategy breaks, in words; None where it breaks none."""
    rules = (_parallel, _offload, _checkpoints, _tiles, _optimizer, _precision, _zeropp, _adapters)
    return next((words for rule in rules if (words := rule(strategy))), None)


def _parallel(s: Strategy) -> str | None:
    if s.pipeline_parallel_size > 1 and s.zero_stage > 1:
        return f"pipeline_parallel_size above 1 needs zero_stage 0 or 1, got {s.zero_stage}"
    if s.tensor_parallel_size > 1 and s.zero_stage > 2:
        return f"tensor_parallel_size above 1 needs zero_stage 0, 1 or 2, got {s.zero_stage}"
    degrees = (s.tensor_parallel_size, s.pipeline_parallel_size, s.sequence_parallel_size)
    if sum(degree > 1 for degree in degrees) > 1 and s.sequence_parallel_size > 1:
        return (
            "sequence_parallel_size above 1 goes with tensor_parallel_size 1 and "
            f"pipeline_parallel_size 1, got {degrees[0]} and {degrees[1]}"
        )
    return None


def _offload(s: Strategy) -> str | None:
    place = s.offload_optimizer
    if place is not Offload.NONE:
        if s.zero_stage == 0:
            return "offload_optimizer needs zero_stage 1, 2 or 3, got 0"
        if place is Offload.NVME and s.zero_stage != 3:
            return f"offload_optimizer nvme needs zero_stage 3, got {s.zero_stage}"
        if s.optimizer is not Optimizer.ADAMW:
            return f"offload_optimizer needs optimizer adamw (CPU Adam), got {s.optimizer}"
    if s.offload_param is not Offload.NONE and s.zero_stage != 3:
        return f"offload_param needs zero_stage 3, got {s.zero_stage}"
    if s.offload_ratio < 1 and not (place is Offload.CPU and s.zero_stage == 3):
        return f"offload_ratio {s.offload_ratio} needs offload_optimizer cpu and zero_stage 3"
    return None


def _checkpoints(s: Strategy) -> str | None:
    if s.checkpoint_scope is not CheckpointScope.LAYER and s.checkpoint_interval != 1:
        return (
            f"checkpoint_scope {s.checkpoint_scope} needs checkpoint_interval 1, "
            f"got {s.checkpoint_interval}"
        )
    if s.offload_checkpoints is Offload.NVME:
        return "offload_checkpoints takes none or cpu, got nvme"
    if s.offload_checkpoints is Offload.CPU and not s.checkpoint_interval:
        return "offload_checkpoints cpu needs checkpoint_interval 1 or more, got 0"
    return None


def _tiles(s: Strategy) -> str | None:
    if s.loss_tiles > 1 and s.fused_kernels:
        return (
            f"loss_tiles {s.loss_tiles} needs fused_kernels false: Liger's loss never holds the "
            "logits as a whole"
        )
    return None


def _optimizer(s: Strategy) -> str | None:
    if s.optimizer is Optimizer.ADAFACTOR and s.zero_stage > 0:
        return (
            f"optimizer adafactor needs zero_stage 0, got {s.zero_stage}: ZeRO hands the "
            "optimizer flat partitions, whose second moment cannot be factored"
        )
    if s.optimizer is Optimizer.ONEBIT_ADAM and s.zero_stage > 0:
        return f"optimizer onebit_adam needs zero_stage 0, got {s.zero_stage}"
    return None


def _precision(s: Strategy) -> str | None:
    if s.master_weights is MasterWeights.BF16:
        if s.precision is not Precision.BF16:
            return f"master_weights bf16 needs precision bf16, got {s.precision}"
        if s.zero_stage == 0:
            return "master_weights bf16 needs zero_stage 1, 2 or 3, got 0"
    for group in (ModuleGroup.EMBEDDING, ModuleGroup.NORM):
        if s.precision_of(group) is GroupPrecision.FP8:
            return f"{group}_precision takes no fp8: only matrix products have it"
    if s.tf32 and all(s.precision_of(group) is not GroupPrecision.FP32 for group in ModuleGroup):
        return "tf32 needs precision fp32, of all modules or of a group of them"
    return None


def _zeropp(s: Strategy) -> str | None:
    for knob, is_on in (
        ("zero_quantized_weights", s.zero_quantized_weights),
        ("zero_quantized_gradients", s.zero_quantized_gradients),
        ("zero_hpz_partition_size", s.zero_hpz_partition_size > 1),
    ):
        if is_on and s.zero_stage != 3:
            return f"{knob} needs zero_stage 3, got {s.zero_stage}"
    return None


def _adapters(s: Strategy) -> str | None:
    if s.lora_rank == 0 and (s.lora_alpha or s.lora_targets):
        knob = "lora_alpha" if s.lora_alpha else "lora_targets"
        return f"{knob} needs a lora_rank above 0"
    return None
