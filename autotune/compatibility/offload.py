"""Offload against the device, the compiler, host memory and disk."""

from __future__ import annotations

from autotune.hardware import Hardware
from autotune.knobs import Offload
from autotune.software import Software
from autotune.strategy import Strategy
from autotune.workload import Workload

__all__ = ["conflict"]


def conflict(
    strategy: Strategy, workload: Workload, hardware: Hardware, software: Software
) -> str | None:
    """Why the question does not allow these knobs, in words; None where it does."""
    if strategy.offload_optimizer is Offload.CPU and not software.has_compiler:
        return "offload_optimizer cpu needs a C++ compiler and ninja, for DeepSpeed's CPU Adam"
    return None
