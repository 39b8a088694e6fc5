"""The Pareto front: the trials that no other beats in both throughput and memory.

Of a study only what was measured, and fits, counts. Does not know how anything was predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from autotune.question.goal import Goal
from autotune.trials.trial import Incumbent, Trial

__all__ = [
    "Metrics",
    "confirmed_rival",
    "front_of",
    "front_rows",
    "incumbents",
    "pareto_front",
    "pick",
    "pick_of",
]

Candidate = TypeVar("Candidate")

Metrics = tuple[float, int]
"""Tokens per second, and bytes of peak memory."""


def front_of(
    candidates: Sequence[Candidate], metrics: Callable[[Candidate], Metrics]
) -> list[Candidate]:
    """The candidates that none beats in both metrics, fastest first.

    Of candidates with equal values the first one stands for all.

    Args:
        candidates: all of them fit.
        metrics: tokens per second and peak memory of one.
    """

    def order(candidate: Candidate) -> tuple[float, int]:
        tokens_per_second, memory_bytes = metrics(candidate)
        return -tokens_per_second, memory_bytes

    front: list[Candidate] = []
    for candidate in sorted(candidates, key=order):
        # All before are as fast or faster, so only one with less memory belongs to it.
        if not front or metrics(candidate)[1] < metrics(front[-1])[1]:
            front.append(candidate)
    return front


def front_rows(
    tokens_per_second: NDArray[np.float64], memory_bytes: NDArray[np.int64]
) -> NDArray[np.intp]:
    """The rows of the Pareto front of two arrays, fastest first."""
    order = np.lexsort((memory_bytes, -tokens_per_second))
    least = np.minimum.accumulate(memory_bytes[order])
    is_less = np.ones(len(order), bool)
    is_less[1:] = least[1:] < least[:-1]
    return order[is_less]


def pick_of(
    front: Sequence[Candidate], which: Goal, metrics: Callable[[Candidate], Metrics]
) -> Candidate | None:
    """One candidate of what `front_of` gave; None where that is empty.

    The knee is the one farthest beyond the straight line between the two ends of the front, both
    metrics scaled to run from 0 to 1 over it: I. Das, "On characterizing the knee of the Pareto
    curve based on normal-boundary intersection", Structural Optimization 18 (1999). Where none
    lies beyond the line, as on a front of one or two, the fastest is balanced too.
    """
    if not front:
        return None
    if which.pick is Goal.THROUGHPUT:
        return front[0]
    if which is Goal.MEMORY:
        return front[-1]
    fastest, leanest = metrics(front[0]), metrics(front[-1])
    speed_range, memory_range = fastest[0] - leanest[0], fastest[1] - leanest[1]
    if not speed_range or not memory_range:
        return front[0]

    def beyond_the_line(candidate: Candidate) -> float:
        tokens_per_second, memory_bytes = metrics(candidate)
        speed = (tokens_per_second - leanest[0]) / speed_range
        saving = (fastest[1] - memory_bytes) / memory_range
        # The ends are (1, 0) and (0, 1); the distance from their line goes with this sum.
        return round(speed + saving - 1, 9)

    return max(front, key=beyond_the_line)


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """The front of the trials that were measured and fit; of equals the first that was run."""
    fitting = sorted((trial for trial in trials if trial.fits), key=lambda trial: trial.number)
    return front_of(fitting, _measured)


def pick(front: Sequence[Trial], which: Goal) -> Trial | None:
    """One trial of what `pareto_front` gave, by one of `FRONT_PICKS`; None where it is empty."""
    return pick_of(front, which, _measured)


def confirmed_rival(trials: Sequence[Trial], fastest: Trial) -> Trial | None:
    """The confirmed trial that may be as fast as the fastest, where that one ran only once.

    The fastest of many short runs is fast by luck too.
    """
    if fastest.is_confirmed:
        return None
    close = [
        trial
        for trial in trials
        if trial.fits
        and trial.is_confirmed
        and trial.throughput is not None
        and trial.throughput.upper >= fastest.tokens_per_second
    ]
    return max(close, key=lambda trial: trial.tokens_per_second, default=None)


def incumbents(trials: Sequence[Trial]) -> tuple[Incumbent, ...]:
    """The front so far, as what a running trial is held against."""
    return tuple(
        Incumbent(
            number=trial.number,
            # A lucky run must not end others that are as fast: later runs may be slower.
            tokens_per_second=trial.least_tokens_per_second,
            peak_memory_bytes=trial.peak_memory_bytes,
        )
        for trial in pareto_front(trials)
    )


def _measured(trial: Trial) -> Metrics:
    return trial.tokens_per_second, trial.peak_memory_bytes
