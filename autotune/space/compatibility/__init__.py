"""The strategies that a workload, a machine and its software allow.

The rules that need more than the strategy itself, one module a family of knobs. Each answers in
words, for the user.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from autotune.machine.hardware import Hardware
from autotune.machine.software import Software
from autotune.question.workload import Workload
from autotune.space.compatibility import (
    adapters,
    batching,
    communication,
    kernels,
    micro_step,
    offload,
    optimizer,
    parallel,
    precision,
    towers,
)
from autotune.space.compatibility.reference import reference_strategy
from autotune.space.strategy import Strategy

__all__ = ["conflict", "reference_strategy", "rules"]

_FAMILIES: tuple[Callable[..., str | None], ...] = (
    parallel.conflict,
    micro_step.conflict_with_sizes,
    micro_step.conflict_with_blocks,
    adapters.conflict,
    precision.conflict,
    optimizer.conflict,
    offload.conflict,
    communication.conflict,
    kernels.conflict,
    towers.conflict,
    batching.conflict,
)


def rules(
    workload: Workload, hardware: Hardware, software: Software
) -> tuple[Callable[[Strategy], str | None], ...]:
    """One rule for each family of knobs: why a strategy cannot run for this question, if so."""
    question: dict[str, Any] = {"workload": workload, "hardware": hardware, "software": software}
    return tuple(partial(family, **question) for family in _FAMILIES)


def conflict(
    strategy: Strategy, workload: Workload, hardware: Hardware, software: Software
) -> str | None:
    """Why this strategy cannot run for this question, or None where it can."""
    broken = (rule(strategy) for rule in rules(workload, hardware, software))
    return next((words for words in broken if words), None)
