"""Knobs of a strategy that contradict each other, whatever the model and the machine.

One function a family of knobs; each answers in words, with the rule, the value and what to do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from autotune.knob_values import (
    PARALLEL_DEGREES,
    Attention,
    CheckpointScope,
    Experts,
    GroupPrecision,
    MasterWeights,
    ModuleGroup,
    Offload,
    Optimizer,
    Precision,
)
from autotune.space.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    from autotune.space.strategy import Strategy

__all__ = ["CONTRADICTIONS"]


def _parallel(s: Strategy) -> str | None:
    above_one = [f"{knob} {n}" for knob in PARALLEL_DEGREES if (n := getattr(s, knob)) > 1]
    if len(above_one) > 1:
        return (
            f"{' and '.join(above_one)} cannot be combined: AutoTP, Ulysses and the pipeline each "
            "tell DeepSpeed which ranks hold the same weights, and it uses only one of them"
        )
    return _tensor_parallel(s) or _sequence_parallel(s) or _pipeline_parallel(s)


def _tensor_parallel(s: Strategy) -> str | None:
    if s.tensor_parallel_size == 1:
        return None
    if s.lora_rank:
        return (
            f"tensor_parallel_size {s.tensor_parallel_size} needs lora_rank 0, got {s.lora_rank}: "
            "AutoTP does not look into PEFT's layers, and would divide nothing"
        )
    if s.fused_kernels:
        return (
            f"tensor_parallel_size {s.tensor_parallel_size} needs fused_kernels false: Liger's "
            "loss reads the weights of the head, and each rank holds only a part of them"
        )
    if s.zero_quantized_weights or s.zero_quantized_gradients or s.zero_hpz_partition_size > 1:
        return (
            f"tensor_parallel_size {s.tensor_parallel_size} cannot be combined with ZeRO++, "
            "which groups neighbouring ranks: they hold different weights here"
        )
    return None


def _sequence_parallel(s: Strategy) -> str | None:
    if s.sequence_parallel_size == 1:
        return None
    if s.attention is Attention.EAGER:
        return (
            f"sequence_parallel_size {s.sequence_parallel_size} needs attention sdpa or "
            "flash_attention_2, got eager: Ulysses drops the mask that eager attention needs"
        )
    if s.optimizer is Optimizer.MUON and s.zero_stage == 3:
        return (
            f"sequence_parallel_size {s.sequence_parallel_size} with optimizer muon needs "
            "zero_stage 0, 1 or 2, got 3: DeepSpeed averages gradients there in two ways at once"
        )
    return None


def _pipeline_parallel(s: Strategy) -> str | None:
    if s.pipeline_parallel_size == 1:
        return None
    knob = f"pipeline_parallel_size {s.pipeline_parallel_size}"
    if s.zero_stage > 1:
        return f"{knob} needs zero_stage 0 or 1, got {s.zero_stage}: DeepSpeed refuses others"
    if s.fused_kernels:
        return f"{knob} needs fused_kernels false: Liger needs all layers in one model"
    return None


def _offload(s: Strategy) -> str | None:
    destination = s.offload_optimizer
    if destination is not Offload.NONE:
        if destination is Offload.NVME and s.zero_stage != 3:
            return f"offload_optimizer nvme needs zero_stage 3, got {s.zero_stage}"
        if s.optimizer is not Optimizer.ADAMW:
            return f"offload_optimizer needs optimizer adamw (CPU Adam), got {s.optimizer}"
        if destination is Offload.NVME and s.master_weights is MasterWeights.BF16:
            return (
                "offload_optimizer nvme needs master_weights fp32: DeepSpeed's swapper mixes up "
                "the types of bf16 states"
            )
    if s.offload_ratio < 1 and not (destination is Offload.CPU and s.zero_stage == 3):
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
    if s.mlp_tiles > 1 and s.checkpoint_scope is CheckpointScope.MLP:
        return (
            f"mlp_tiles {s.mlp_tiles} needs checkpoint_scope layer or attention: tiles already "
            "recompute the MLP"
        )
    if s.loss_tiles > 1 and s.fused_kernels:
        return (
            f"loss_tiles {s.loss_tiles} needs fused_kernels false: Liger's loss never holds the "
            "logits as a whole"
        )
    return None


def _optimizer(s: Strategy) -> str | None:
    if OPTIMIZERS[s.optimizer].is_factored and s.zero_stage > 0:
        return (
            f"optimizer {s.optimizer} needs zero_stage 0, got {s.zero_stage}: ZeRO hands the "
            "optimizer flat partitions, whose second moment cannot be factored"
        )
    if OPTIMIZERS[s.optimizer].needs_whole_matrices and s.tensor_parallel_size > 1:
        return (
            f"optimizer {s.optimizer} needs tensor_parallel_size 1, got {s.tensor_parallel_size}: "
            "it works on whole matrices"
        )
    if OPTIMIZERS[s.optimizer].is_factored and s.is_bf16_pipeline:
        return (
            f"optimizer {s.optimizer} needs pipeline_parallel_size 1 with precision bf16, got "
            f"{s.pipeline_parallel_size}: DeepSpeed makes flat partitions there"
        )
    if s.optimizer is Optimizer.MUON:
        return _muon(s)
    return None


def _muon(s: Strategy) -> str | None:
    if s.pipeline_parallel_size > 1:
        return (
            f"optimizer muon needs pipeline_parallel_size 1, got {s.pipeline_parallel_size}: "
            "DeepSpeed's Muon does not support stages"
        )
    if s.zero_quantized_gradients:
        return (
            "optimizer muon needs zero_quantized_gradients false: DeepSpeed's Muon takes whole "
            "gradients"
        )
    return None


def _precision(s: Strategy) -> str | None:
    if s.tf32 and all(s.precision_of(group) is not GroupPrecision.FP32 for group in ModuleGroup):
        return "tf32 needs precision fp32, for all modules or for one group of modules"
    return _own_loss_scale(s) or _fp8(s) or _group_precisions(s)


def _own_loss_scale(s: Strategy) -> str | None:
    """fp16 without ZeRO, where DeepSpeed scales no loss."""
    if not s.scales_own_loss:
        return None
    what = "precision fp16 with zero_stage 0, for all modules or for one group, needs"
    for degree in PARALLEL_DEGREES:
        if getattr(s, degree) > 1:
            return f"{what} {degree} 1, got {getattr(s, degree)}: each rank must see all gradients"
    if s.optimizer is Optimizer.MUON:
        return f"{what} an optimizer other than {s.optimizer}, whose masters DeepSpeed makes"
    return None


def _fp8(s: Strategy) -> str | None:
    fp8 = [group for group in ModuleGroup if s.precision_of(group) is GroupPrecision.FP8]
    for group in fp8:
        knob = f"{group}_precision"
        if group in (ModuleGroup.EMBEDDING, ModuleGroup.NORM):
            return f"{knob} cannot be fp8: only matrix products can"
        if s.precision is not Precision.BF16:
            return f"{knob} fp8 needs precision bf16, got {s.precision}"
        for degree in ("tensor_parallel_size", "pipeline_parallel_size"):
            if getattr(s, degree) > 1:
                return f"{knob} fp8 needs {degree} 1: DeepSpeed puts its own layers there"
    if ModuleGroup.LM_HEAD in fp8 and s.fused_kernels:
        return "lm_head_precision fp8 needs fused_kernels false: Liger's loss bypasses the head"
    return None


def _group_precisions(s: Strategy) -> str | None:
    """Weights of several dtypes in one engine."""
    if not s.has_several_dtypes:
        return None
    own = {group: s.parameter_precision(group) for group in ModuleGroup}
    if s.precision not in own.values():
        return f"no group of modules uses precision {s.precision}: choose one that a group uses"
    what = "groups of modules with precisions of their own need"
    if s.zero_stage == 3:
        return f"{what} zero_stage 0, 1 or 2, got 3: ZeRO-3 divides only weights of one dtype"
    if s.master_weights is MasterWeights.BF16:
        return f"{what} master_weights fp32, got bf16: DeepSpeed keeps bf16 for one dtype only"
    if s.offload_optimizer is not Offload.NONE:
        return f"{what} offload_optimizer none: DeepSpeed's host buffers have one dtype"
    for degree in PARALLEL_DEGREES:
        if getattr(s, degree) > 1:
            return f"{what} {degree} 1, got {getattr(s, degree)}: ranks exchange one dtype"
    if s.optimizer is Optimizer.MUON:
        return f"{what} an optimizer other than {s.optimizer}, which makes its own groups"
    if s.fused_kernels and own[ModuleGroup.LM_HEAD] is not s.precision:
        return (
            f"lm_head_precision {own[ModuleGroup.LM_HEAD]} needs fused_kernels false: Liger's "
            f"loss takes hidden states of precision {s.precision} past the head"
        )
    if s.lora_rank and Precision.FP16 in s.parameter_precisions and not s.scales_own_loss:
        return (
            "fp16 beside other precisions needs zero_stage 0 or lora_rank 0: under ZeRO, "
            "DeepSpeed does not scale the loss if no adapter is fp16"
        )
    return None


def _zeropp(s: Strategy) -> str | None:
    if s.zero_hpz_partition_size > 1 and s.offload_param is not Offload.NONE:
        return (
            "zero_hpz_partition_size above 1 needs offload_param none: the second copy of the "
            "weights would be offloaded as well"
        )
    return None


def _kernels(s: Strategy) -> str | None:
    attention = s.precision_of(ModuleGroup.ATTENTION)
    if s.attention is Attention.FLASH and attention is GroupPrecision.FP32:
        return f"attention {s.attention} computes in 16 bit: its precision must be bf16 or fp16"
    experts = s.experts_implementation
    if s.fused_kernels and experts is not Experts.GROUPED_MM:
        return (
            f"experts_implementation {experts} needs fused_kernels false: Liger computes experts "
            "by kernels of its own"
        )
    if not s.torch_compile:
        return None
    if experts is Experts.EAGER:
        return (
            "torch_compile needs experts_implementation grouped_mm or batched_mm, got eager: the "
            "loop asks which experts have tokens, and breaks each layer into pieces"
        )
    if s.zero_stage == 3:
        return (
            "torch_compile needs zero_stage 0, 1 or 2, got 3: the hooks that gather weights "
            "break each layer into pieces, which compile for minutes and run slower"
        )
    is_scoped = s.checkpoint_scope is not CheckpointScope.LAYER
    if is_scoped and s.offload_checkpoints is not Offload.NONE:
        return (
            f"torch_compile with offload_checkpoints {s.offload_checkpoints} needs "
            f"checkpoint_scope layer, got {s.checkpoint_scope}: the copy to the host breaks the "
            "compiled layer into pieces"
        )
    return None


def _adapters(s: Strategy) -> str | None:
    if s.lora_rank == 0 and (s.lora_alpha or s.lora_targets):
        knob = "lora_alpha" if s.lora_alpha else "lora_targets"
        return f"{knob} needs a lora_rank above 0"
    return None


CONTRADICTIONS: tuple[Callable[[Strategy], str | None], ...] = (
    _parallel,
    _offload,
    _checkpoints,
    _tiles,
    _optimizer,
    _precision,
    _zeropp,
    _kernels,
    _adapters,
)
"""One for each family of knobs."""
