"""The Pareto front of a study: what no other trial beats in both throughput and memory.

Does not know predictions: only what was measured, and fits, counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from autotune.trial import Measurement, Trial

__all__ = ["Pick", "pareto_front", "pick"]


class Pick(StrEnum):
    """Which trial of a front is wanted."""

    THROUGHPUT = "throughput"
    """The fastest."""
    MEMORY = "memory"
    """The one that needs the least memory."""
    BALANCED = "balanced"
    """The knee: beyond it, more speed costs much memory and less memory much speed."""


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that fit and that none beats in both objectives, fastest first.

    Of trials with equal values the first one stands for all.
    """
    fitting = [(trial, _measured(trial)) for trial in trials if trial.fits]
    fitting.sort(
        key=lambda pair: (-pair[1].tokens_per_second, pair[1].peak_memory_bytes, pair[0].number)
    )
    front: list[Trial] = []
    for trial, measurement in fitting:
        # All before are as fast or faster, so only less memory earns a place.
        if not front or measurement.peak_memory_bytes < _measured(front[-1]).peak_memory_bytes:
            front.append(trial)
    return front


def pick(front: Sequence[Trial], which: Pick) -> Trial | None:
    """One trial of what `pareto_front` gave; None where that is empty.

    The knee is the trial farthest beyond the straight line between the two ends of the front, both
    objectives scaled to run from 0 to 1 over it: I. Das, "On characterizing the knee of the Pareto
    curve based on normal-boundary intersection", Structural Optimization 18 (1999). Where no trial
    lies beyond the line, as on a front of one or two, the fastest is balanced too.
    """
    if not front:
        return None
    if which is Pick.THROUGHPUT:
        return front[0]
    if which is Pick.MEMORY:
        return front[-1]
    fastest, leanest = _measured(front[0]), _measured(front[-1])
    speed_range = fastest.tokens_per_second - leanest.tokens_per_second
    memory_range = fastest.peak_memory_bytes - leanest.peak_memory_bytes
    if not speed_range or not memory_range:
        return front[0]

    def beyond_the_line(trial: Trial) -> float:
        measurement = _measured(trial)
        speed = (measurement.tokens_per_second - leanest.tokens_per_second) / speed_range
        saving = (fastest.peak_memory_bytes - measurement.peak_memory_bytes) / memory_range
        # The ends are (1, 0) and (0, 1); the distance from their line goes with this sum.
        return round(speed + saving - 1, 9)

    return max(front, key=beyond_the_line)


def _measured(trial: Trial) -> Measurement:
    assert trial.measurement is not None
    return trial.measurement
