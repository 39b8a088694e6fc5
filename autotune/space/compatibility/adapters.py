"""Checks LoRA and QLoRA against the method."""

from __future__ import annotations

from autotune.knob_values import Precision
from autotune.machine.hardware import Hardware
from autotune.machine.software import Software
from autotune.question.adapter_targets import EXPERTS
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
    words = _on_experts(strategy, workload) if strategy.lora_rank else None
    if words:
        return words
    if workload.method is Method.QLORA:
        if strategy.zero_stage == 3:
            return "ZeRO-3 does not divide 4-bit weights: QLoRA needs zero_stage 0, 1 or 2"
        if strategy.precision is Precision.FP32:
            return "QLoRA computes in 16 bit: precision must be bf16 or fp16"
    return None


def _on_experts(strategy: Strategy, workload: Workload) -> str | None:
    """PEFT gives the experts other weights in each forward and takes them away behind it."""
    if EXPERTS not in workload.adapter_targets(strategy.lora_targets):
        return None
    words = "is not proven with adapters on routed experts"
    if strategy.zero_stage == 3:
        return f"zero_stage 3 {words}"
    if strategy.pipeline_parallel_size > 1:
        return f"pipeline_parallel_size {strategy.pipeline_parallel_size} {words}"
    return f"torch_compile {words}" if strategy.torch_compile else None
