"""The strategy that all others of a question are compared with."""

from __future__ import annotations

from autotune.knobs import MasterWeights, Optimizer, Precision
from autotune.machine.hardware import Hardware
from autotune.question.workload import Method, Workload
from autotune.space.compatibility.attention import plain_attention
from autotune.space.strategy import Strategy

__all__ = ["reference_strategy"]


def reference_strategy(workload: Workload, hardware: Hardware) -> Strategy:
    """What a careful person would train with: loss-changing knobs are compared with its."""
    return Strategy(
        optimizer=Optimizer.ADAMW,
        master_weights=MasterWeights.FP32,
        precision=Precision.BF16 if hardware.supports_bf16 else Precision.FP16,
        attention=plain_attention(workload.model.model_type),
        lora_rank=0 if workload.method is Method.FULL else workload.lora_rank,
    )
