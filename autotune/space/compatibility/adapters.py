"""Checks LoRA and QLoRA against the method."""

from __future__ import annotations

from autotune.knob_values import Precision
from autotune.machine.hardware import Hardware
from autotune.machine.software import Software
from autotune.question.workload import Method, Workload
from autotune.space.strategy import Strategy

__all__ = ["conflict"]


def conflict(
    strategy: Strategy, workload: Workload, hardware: Hardware, software: Software
) -> str | None:
    """Why the question does not allow these knobs, in words; None where it does."""
    if (strategy.lora_rank > 0) != (workload.method is not Method.FULL):
        return f"lora_rank {strategy.lora_rank} does not go with method {workload.method}"
    unknown = workload.model.unknown_target(workload.adapter_targets(strategy.lora_targets))
    if strategy.lora_rank and unknown:
        return f"lora_targets: {unknown}"
    if workload.method is Method.QLORA:
        if strategy.zero_stage == 3:
            return "ZeRO-3 does not divide 4-bit weights: QLoRA needs zero_stage 0, 1 or 2"
        if strategy.precision is Precision.FP32:
            return "QLoRA computes in 16 bit: precision must be bf16 or fp16"
    return None
