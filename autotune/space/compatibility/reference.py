"""The reference: the strategy that all others of a question are compared with."""

from __future__ import annotations

from autotune.knob_values import MasterWeights, Optimizer, Precision
from autotune.machine.hardware import DeviceType, Hardware
from autotune.question.workload import Method, Workload
from autotune.space.compatibility.attention import plain_attention
from autotune.space.strategy import Strategy

__all__ = ["reference_strategy"]


def reference_strategy(workload: Workload, hardware: Hardware) -> Strategy:
    """What a careful person would train with: loss-changing knobs are compared with its."""
    return Strategy(
        optimizer=Optimizer.ADAMW,
        master_weights=MasterWeights.FP32,
        precision=_precision(hardware),
        attention=plain_attention(workload.model.model_type),
        lora_rank=0 if workload.method is Method.FULL else workload.lora_rank,
    )


def _precision(hardware: Hardware) -> Precision:
    """16 bit where the device computes it: a CPU without instructions for bf16 takes fp32.

    Measured: `tiny` on a CPU with AVX2 alone, 1,548 tokens/s in bf16 and 11,420 in fp32.
    """
    if hardware.supports_bf16:
        return Precision.BF16
    return Precision.FP32 if hardware.device_type is DeviceType.CPU else Precision.FP16
