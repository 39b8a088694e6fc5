"""Bytes of one number in each group of modules, and the relative time of its matrix products.

Follows `techniques/precision.py`: weights and activations of a group have the group's precision,
and the residual stream between groups has the common one. Does not know which modules a model has.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from autotune.knob_values import GroupPrecision, MasterWeights, ModuleGroup, Precision
from autotune.machine.hardware import DeviceType, Hardware
from autotune.space.strategy import Strategy

__all__ = [
    "FP32_BYTES",
    "NORM_BYTES",
    "GroupBytes",
    "attention_slowdown",
    "element_bytes",
    "group_bytes",
    "group_slowdowns",
    "has_hbm",
    "master_bytes",
]

NORM_BYTES = 8
"""Bytes of one squared number while ZeRO computes a norm: it sums in fp64 (`runtime/utils.py`,
`get_norm_dtype`)."""

FP32_BYTES = 4

_BYTES = {Precision.BF16: 2, Precision.FP16: 2, Precision.FP32: FP32_BYTES}

_TF32_SLOWDOWN = 2.0
_FP32_SLOWDOWN = 15.0
_FP32_SLOWDOWN_NO_TF32 = 8.0
"""Time of a matrix product relative to 16 bit, on GPUs with HBM: an H100 has 989 TFLOP/s at 16
bit, 495 in TF32 and 67 in fp32; an A100 312, 156 and 19.5; a V100 125 and 15.7 (NVIDIA's data
sheets)."""

_FP32_SLOWDOWN_WITHOUT_HBM = 2.0
"""Time of a matrix product in fp32 relative to 16 bit on GPUs without HBM; TF32 is no faster: an
RTX 4090 has 165 TFLOP/s at 16 bit and 82.6 in fp32."""

_FP32_SLOWDOWN_CPU = 2.0
"""Slowdown of fp32 on a CPU with bf16 instructions. Measured on one core with AVX512-BF16: 161
GFLOP/s in bf16, 80 in fp32."""

_EMULATED_SLOWDOWN = 30.0
"""Slowdown of a precision that a CPU has no instructions for. Measured on one core limited to
AVX2: 30 GFLOP/s in fp32, 0.6 to 1.3 in bf16."""

_FP8_SLOWDOWN = 0.5
"""Time of a matrix product in fp8 relative to 16 bit: 1979 and 989 TFLOP/s on an H100."""

_HBM_BYTES_PER_S = 1.5e12
"""A GPU with at least this memory bandwidth is taken to have HBM and NVLink."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GroupBytes:
    """Bytes of one weight, gradient or activation of each group."""

    residual: int
    """Bytes of one number between the modules of a layer, and of modules in no group."""
    embedding: int
    attention: int
    mlp: int
    norm: int
    lm_head: int
    is_uniform: bool
    """Whether all groups have the same size."""


def element_bytes(strategy: Strategy) -> int:
    """Bytes of one number in the common precision: residual stream, adapters, communication."""
    return _BYTES[strategy.precision]


def master_bytes(strategy: Strategy) -> int:
    """Bytes of one master weight, and of one moment in the same precision."""
    return 2 if strategy.master_weights is MasterWeights.BF16 else FP32_BYTES


_SAME = GroupPrecision.SAME
_UNIFORM = {
    size: GroupBytes(
        residual=size,
        embedding=size,
        attention=size,
        mlp=size,
        norm=size,
        lm_head=size,
        is_uniform=True,
    )
    for size in set(_BYTES.values())
}


def group_bytes(strategy: Strategy) -> GroupBytes:
    """Bytes of one number in each group of modules."""
    if (
        strategy.mlp_precision is _SAME
        and strategy.attention_precision is _SAME
        and strategy.embedding_precision is _SAME
        and strategy.norm_precision is _SAME
        and strategy.lm_head_precision is _SAME
    ):
        return _UNIFORM[_BYTES[strategy.precision]]
    return _group_bytes(
        strategy.precision,
        strategy.embedding_precision,
        strategy.attention_precision,
        strategy.mlp_precision,
        strategy.norm_precision,
        strategy.lm_head_precision,
    )


@cache
def _group_bytes(common: Precision, *groups: GroupPrecision) -> GroupBytes:
    # Only matrix products compute in fp8; weights and activations keep the common precision.
    own = [
        _BYTES[common if group in (_SAME, GroupPrecision.FP8) else Precision(group)]
        for group in groups
    ]
    return GroupBytes(
        residual=_BYTES[common],
        embedding=own[0],
        attention=own[1],
        mlp=own[2],
        norm=own[3],
        lm_head=own[4],
        is_uniform=all(size == _BYTES[common] for size in own),
    )


def group_slowdowns(strategy: Strategy, hardware: Hardware) -> dict[ModuleGroup, float]:
    """Time of a matrix product of each group, relative to one at 16 bit.

    On a CPU without bf16 instructions, relative to one in fp32.
    """
    fp32 = _fp32_slowdown(hardware, tf32=strategy.tf32)
    rates = {GroupPrecision.FP32: fp32, GroupPrecision.FP8: _FP8_SLOWDOWN}
    if hardware.device_type is DeviceType.CPU:
        bf16, fp16 = hardware.supports_bf16, hardware.supports_fp16
        rates[GroupPrecision.BF16] = 1.0 if bf16 else _EMULATED_SLOWDOWN
        rates[GroupPrecision.FP16] = 1.0 if fp16 else _EMULATED_SLOWDOWN
    return {
        group: rates.get(strategy.precision_of(group), 1.0)
        for group in (ModuleGroup.ATTENTION, ModuleGroup.MLP, ModuleGroup.LM_HEAD)
    }


def attention_slowdown(strategy: Strategy, hardware: Hardware) -> float:
    """Time of attention's products relative to 16 bit.

    In fp32, torch has no flash kernel, and its memory-efficient kernel does not use
    TensorFloat-32.
    """
    if strategy.precision_of(ModuleGroup.ATTENTION) is not GroupPrecision.FP32:
        return 1.0
    return _fp32_slowdown(hardware, tf32=False)


def _fp32_slowdown(hardware: Hardware, *, tf32: bool) -> float:
    if hardware.device_type is DeviceType.CPU:
        return _FP32_SLOWDOWN_CPU if hardware.supports_bf16 else 1.0
    if not hardware.supports_bf16:
        return _FP32_SLOWDOWN_NO_TF32
    if not has_hbm(hardware):
        return _FP32_SLOWDOWN_WITHOUT_HBM
    return _TF32_SLOWDOWN if tf32 else _FP32_SLOWDOWN


def has_hbm(hardware: Hardware) -> bool:
    """Whether the GPU is taken to have HBM and NVLink, by its memory bandwidth."""
    return hardware.memory_bytes_per_s >= _HBM_BYTES_PER_S
