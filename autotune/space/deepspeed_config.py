"""Writes a strategy as DeepSpeed's JSON: the only file that knows DeepSpeed's keys.

The worker trains with exactly what the export writes, so what was measured is what is shipped.
What a JSON cannot hold (checkpointing, kernels, LoRA, bitsandbytes' optimizers) is put on the
model by `techniques/apply.py`.
"""

from __future__ import annotations

from typing import Any

from autotune.errors import ConfigError
from autotune.knob_values import MasterWeights, Offload, Optimizer, Precision
from autotune.machine.hardware import DeviceType
from autotune.question.workload import Workload
from autotune.space.optimizers import OPTIMIZERS, Library
from autotune.space.strategy import Strategy

__all__ = [
    "BUFFER_MARGIN",
    "GRADIENT_CLIPPING",
    "INITIAL_SCALE_POWER",
    "LEARNING_RATE",
    "clips_gradients",
    "deepspeed_config",
    "flattens_parameters",
    "is_client_optimizer",
    "stepped_elements",
    "sub_group_elements",
]

LEARNING_RATE = 1e-5
"""The learning rate written into configurations; a user's own belongs in its place."""

GRADIENT_CLIPPING = 1.0
"""The norm that all gradients together are clipped to."""

INITIAL_SCALE_POWER = 12
"""Power of two of fp16's first loss scale. With DeepSpeed's 16 several steps overflow."""

BUFFER_MARGIN = 1024
"""Elements for the padding of a part, in each buffer that weights are read into from disk."""

_OWN_SUB_GROUP_ELEMENTS = 1_000_000_000
"""Elements of a sub-group by DeepSpeed's default (`zero/config.py`, `sub_group_size`)."""

_SUB_GROUPS_OF_A_RATIO = 40
"""Sub-groups that a ratio is met with: it is met to a fortieth, unless one weight is larger."""

_NVME_SUB_GROUP_ELEMENTS = 100_000_000
"""DeepSpeed's example for ZeRO-Infinity: buffers of 1.6 GB a rank with fp32 states."""


def is_client_optimizer(strategy: Strategy) -> bool:
    """Whether the optimizer is built outside DeepSpeed and passed to `deepspeed.initialize`."""
    return (
        OPTIMIZERS[strategy.optimizer].library is not Library.TORCH
        or strategy.has_several_dtypes
        or strategy.scales_own_loss
    )


def clips_gradients(strategy: Strategy) -> bool:
    """Whether DeepSpeed clips gradients, as its JSON then says."""
    # Under ZeRO DeepSpeed would clip Muon's update, not its gradient: by a factor that grows with
    # the number of matrices. The update's size does not depend on the gradient's. And gradients
    # that DeepSpeed does not know to be scaled are clipped where the scale is taken from them.
    return strategy.optimizer is not Optimizer.MUON and not strategy.scales_own_loss


def flattens_parameters(strategy: Strategy) -> bool:
    """Whether the optimizer sees flat partitions, and no longer which parameter is which."""
    # BF16_Optimizer is a ZeRO-1 of its own.
    return strategy.zero_stage > 0 or strategy.is_bf16_pipeline


def deepspeed_config(
    workload: Workload,
    strategy: Strategy,
    *,
    num_devices: int,
    device_type: DeviceType,
    learning_rate: float = LEARNING_RATE,
    nvme_path: str | None = None,
) -> dict[str, Any]:
    """The configuration that `deepspeed.initialize` takes for this strategy.

    Raises:
        ConfigError: the global batch cannot be divided as the strategy asks, or it offloads to
            NVMe and no path is given.
    """
    accumulation = strategy.gradient_accumulation_steps(workload.global_batch_size, num_devices)
    if not accumulation:
        raise ConfigError(
            f"micro_batch_size {strategy.micro_batch_size} x "
            f"{strategy.data_parallel_size(num_devices)} data-parallel ranks does not divide "
            f"--global-batch {workload.global_batch_size}"
        )
    config: dict[str, Any] = {
        **_batch(workload, strategy),
        "train_micro_batch_size_per_gpu": strategy.micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": GRADIENT_CLIPPING if clips_gradients(strategy) else 0.0,
        # DeepSpeed's own progress lines would synchronise the device.
        "steps_per_print": 2**31 - 1,
        **_precision(strategy),
    }
    if strategy.tensor_parallel_size > 1:
        config["tensor_parallel"] = {"autotp_size": strategy.tensor_parallel_size}
    if strategy.zero_stage:
        config["zero_optimization"] = {
            **_zero_optimization(workload, strategy, num_devices),
            **_offload(workload, strategy, num_devices, nvme_path),
            **_zeropp(strategy),
        }
        if strategy.optimizer is not Optimizer.ADAMW:
            config["zero_allow_untested_optimizer"] = True
    else:
        # DeepSpeed's default. Accelerate, and so HF Trainer, refuses a JSON that does not say it.
        config["zero_optimization"] = {"stage": 0}
    optimizer = _optimizer(strategy, device_type, learning_rate)
    if optimizer:
        config["optimizer"] = optimizer
    return config


def _batch(workload: Workload, strategy: Strategy) -> dict[str, Any]:
    # DeepSpeed checks it against all ranks, before AutoTP and in ZeRO-3's `Init`, as if each had
    # samples of its own. Micro-batch and accumulation say it all.
    if strategy.tensor_parallel_size * strategy.sequence_parallel_size > 1:
        return {}
    return {"train_batch_size": workload.global_batch_size}


def _precision(strategy: Strategy) -> dict[str, Any]:
    if strategy.scales_own_loss:
        # Nor are weights cast: they have their precisions already.
        return {}
    # Loss scale 0 stands for dynamic.
    fp16 = {"loss_scale": 0, "initial_scale_power": INITIAL_SCALE_POWER}
    if strategy.has_several_dtypes:
        # DeepSpeed casts all parameters to bf16 or fp16 where that is enabled. Where neither is,
        # it takes them as they are, reduces gradients in fp32, and scales the loss all the same
        # where the optimizer's first group is fp16: by the numbers that stand here.
        is_scaled = Precision.FP16 in strategy.parameter_precisions
        return {"fp16": {"enabled": False} | fp16} if is_scaled else {}
    if strategy.precision is Precision.FP32:
        return {}
    if strategy.precision is Precision.FP16:
        return {"fp16": {"enabled": True} | fp16}
    bf16: dict[str, Any] = {"enabled": True}
    if strategy.master_weights is MasterWeights.BF16:
        bf16 |= {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    return {"bf16": bf16}


def _zero_optimization(workload: Workload, strategy: Strategy, num_devices: int) -> dict[str, Any]:
    # A bucket larger than the model only costs memory: nothing more ever travels in it.
    trained = workload.num_trainable_parameters(strategy.lora_rank, strategy.lora_targets)
    bucket = min(strategy.reduce_bucket_size, max(trained, 1))
    zero: dict[str, Any] = {
        "stage": strategy.zero_stage,
        # DeepSpeed overlaps nothing in a pipeline.
        "overlap_comm": strategy.overlap_comm
        and num_devices > 1
        and strategy.pipeline_parallel_size == 1,
        "contiguous_gradients": not _mixes_fp16(strategy),
        "reduce_bucket_size": bucket,
    }
    if strategy.zero_stage < 3:
        zero["allgather_bucket_size"] = bucket
    elif strategy.optimizer is Optimizer.MUON:
        # DeepSpeed's Muon takes whole gradients, and refuses scattered ones.
        zero["reduce_scatter"] = False
    return zero


def _mixes_fp16(strategy: Strategy) -> bool:
    # ZeRO-2's buffer of contiguous gradients would be fp16 for all groups, those of fp32 too.
    has_fp16 = Precision.FP16 in strategy.parameter_precisions
    return strategy.zero_stage == 2 and has_fp16 and strategy.has_several_dtypes


def _offload(
    workload: Workload, strategy: Strategy, num_devices: int, nvme_path: str | None
) -> dict[str, Any]:
    """Where optimizer and parameters live, and how much of them is staged at once."""
    optimizer, param = strategy.offload_optimizer, strategy.offload_param
    zero: dict[str, Any] = {}
    if optimizer is not Offload.NONE:
        zero["offload_optimizer"] = {"device": str(optimizer), "pin_memory": True}
    if strategy.offload_ratio < 1:
        zero["offload_optimizer"]["ratio"] = strategy.offload_ratio
    if param is not Offload.NONE:
        zero["offload_param"] = {"device": str(param), "pin_memory": True}
    if strategy.uses_nvme:
        if nvme_path is None:
            raise ConfigError("offloading to nvme needs a folder for it: --nvme-path FOLDER")
        for knob, destination in (("offload_optimizer", optimizer), ("offload_param", param)):
            if destination is Offload.NVME:
                zero[knob]["nvme_path"] = nvme_path
    if param is Offload.NVME:
        # DeepSpeed would keep the first billion elements in host memory, and so all of most
        # models. Each buffer must hold one rank's part of any weight.
        largest = -(-workload.model.largest_weight // num_devices)
        zero["offload_param"] |= {"max_in_cpu": 0, "buffer_size": largest + BUFFER_MARGIN}
        # A weight that is gathered ahead, or kept for its next use, holds its buffer: with small
        # weights DeepSpeed 0.19 runs out of buffers, whatever their number.
        zero |= {"stage3_prefetch_bucket_size": 0, "stage3_max_reuse_distance": 0}
    sub_group = sub_group_elements(workload, strategy, num_devices)
    if sub_group is not None:
        zero["sub_group_size"] = sub_group
    return zero


def sub_group_elements(workload: Workload, strategy: Strategy, num_devices: int) -> int | None:
    """Elements that ZeRO-3's optimizer steps over at once; None for DeepSpeed's own 1e9.

    The ratio chooses among whole sub-groups: there must be many. Of what is on disk one sub-group
    is in host memory at a time, in four buffers: it must be small.
    """
    if strategy.offload_ratio < 1:
        trained = workload.num_trainable_parameters(strategy.lora_rank, strategy.lora_targets)
        return max(1, trained // num_devices // _SUB_GROUPS_OF_A_RATIO)
    if strategy.uses_nvme:
        return _NVME_SUB_GROUP_ELEMENTS
    return None


def stepped_elements(workload: Workload, strategy: Strategy, num_devices: int) -> int:
    """Elements of a rank's part that ZeRO-3's optimizer steps over at once, told to or not."""
    told = sub_group_elements(workload, strategy, num_devices)
    return told or _OWN_SUB_GROUP_ELEMENTS


def _zeropp(strategy: Strategy) -> dict[str, Any]:
    """ZeRO++: Wang et al. (arXiv 2306.10209)."""
    zero: dict[str, Any] = {}
    if strategy.zero_quantized_weights:
        zero["zero_quantized_weights"] = True
    if strategy.zero_quantized_gradients:
        zero["zero_quantized_gradients"] = True
    if strategy.zero_hpz_partition_size > 1:
        zero["zero_hpz_partition_size"] = strategy.zero_hpz_partition_size
    return zero


def _optimizer(
    strategy: Strategy, device_type: DeviceType, learning_rate: float
) -> dict[str, Any] | None:
    if is_client_optimizer(strategy):
        return None
    # No types of DeepSpeed's: looked up in torch.optim by these very names.
    facts = OPTIMIZERS[strategy.optimizer]
    params = {"lr": learning_rate, **facts.settings}
    if strategy.optimizer is Optimizer.ADAMW and strategy.offload_optimizer is Offload.NONE:
        # torch's own AdamW needs no extension to be compiled; fused is its single-kernel form.
        params |= {"torch_adam": True, "fused": device_type is DeviceType.CUDA}
    return {"type": facts.class_name, "params": params}
