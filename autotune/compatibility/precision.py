"""Precision against what the device computes with."""

from __future__ import annotations

from autotune.hardware import Hardware
from autotune.knobs import Precision
from autotune.software import Software
from autotune.strategy import Strategy
from autotune.workload import Workload

__all__ = ["conflict"]


def conflict(
    strategy: Strategy, workload: Workload, hardware: Hardware, software: Software
) -> str | None:
    """Why the question does not allow these knobs, in words; None where it does."""
    if strategy.precision is Precision.BF16 and not hardware.supports_bf16:
        return f"{hardware.device_kind} has no bf16"
    if strategy.precision is Precision.FP16 and not hardware.supports_fp16:
        return "DeepSpeed computes fp16 on CPUs with AVX512-FP16 only, and this one has none"
    return None
