"""Checks what a vision-language model cannot do: trials train its language part alone."""

from __future__ import annotations

from autotune.machine.hardware import Hardware
from autotune.machine.software import Software
from autotune.question.workload import Workload
from autotune.space.strategy import Strategy

__all__ = ["conflict"]

_FOR_LANGUAGE_ALONE = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "sequence_parallel_size",
    "loss_tiles",
)
"""Knobs above 1 that cut a model at places which images go past."""


def conflict(
    strategy: Strategy, workload: Workload, hardware: Hardware, software: Software
) -> str | None:
    """Why the question does not allow these knobs, in words; None where it does."""
    model = workload.model
    if not model.tower_parameters:
        return None
    words = (
        f"is not proven beside the vision tower of {model.whole_type}; --vision absent tunes its "
        "language part alone"
    )
    for knob in _FOR_LANGUAGE_ALONE:
        if getattr(strategy, knob) > 1:
            return f"{knob} {getattr(strategy, knob)} {words}"
    if strategy.has_group_precisions:
        return f"a precision for a group of modules {words}"
    return None
