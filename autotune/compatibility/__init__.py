"""Which strategies a workload, a machine and its software allow.

The rules that need more than the strategy itself, one module a family of knobs. Each answers in
words, for the user.
"""

from __future__ import annotations

from autotune.compatibility import (
    adapters,
    batch,
    blocks,
    communication,
    kernels,
    offload,
    optimizer,
    parallel,
    precision,
)
from autotune.compatibility.reference import reference_strategy
from autotune.hardware import Hardware
from autotune.software import Software
from autotune.strategy import Strategy
from autotune.workload import Workload

__all__ = ["conflict", "reference_strategy"]

_FAMILIES = (
    parallel.conflict,
    batch.conflict,
    blocks.conflict,
    adapters.conflict,
    precision.conflict,
    optimizer.conflict,
    offload.conflict,
    communication.conflict,
    kernels.conflict,
)


def conflict(
    strategy: Strategy, workload: Workload, hardware: Hardware, software: Software
) -> str | None:
    """Why this strategy cannot run for this question, or None where it can."""
    for family in _FAMILIES:
        words = family(strategy, workload, hardware, software)
        if words:
            return words
    return None
