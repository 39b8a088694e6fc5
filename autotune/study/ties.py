"""Ties: trials of a front that cannot be told from others in speed.

Does not know how a front or an interval is found, nor how a tie is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autotune.study.confirmation import Comparison, Verdict
from autotune.trials.trial import Trial

__all__ = ["Tie", "tied_with", "ties"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tie:
    """A trial, and those that may be as fast."""

    fastest: Trial
    others: tuple[Trial, ...]
    """Slower by less than what the measurement leaves open, the fastest first."""


def ties(front: Sequence[Trial], compared: Sequence[Comparison] = ()) -> list[Tie]:
    """The ties of a front; a trial is one of the others of one tie at most.

    Two trials are a tie where their 95 % intervals overlap. What runs in turns have shown of two
    trials goes before.

    Args:
        front: measured trials, fastest first.
        compared: what runs in turns say about two of them.
    """
    verdicts = _verdicts(compared)
    found = []
    left = list(front)
    while left:
        fastest, *rest = left
        others = tuple(trial for trial in rest if _is_tie(fastest, trial, verdicts))
        if others:
            found.append(Tie(fastest=fastest, others=others))
        left = [trial for trial in rest if trial not in others]
    return found


def tied_with(
    trial: Trial, front: Sequence[Trial], compared: Sequence[Comparison] = ()
) -> list[Trial]:
    """The other trials of a front that may be as fast as this one, in the order of the front.

    Each pair is asked for itself: of three trials the middle one may be a tie with both others,
    which are none with each other.

    Args:
        trial: measured, of the front or not.
        front: measured trials, fastest first.
        compared: what runs in turns say about two of them.
    """
    verdicts = _verdicts(compared)
    others = [other for other in front if other.number != trial.number]
    return [other for other in others if _is_tie(trial, other, verdicts)]


def _verdicts(compared: Sequence[Comparison]) -> dict[frozenset[int], Verdict]:
    return {frozenset((c.first.number, c.second.number)): c.verdict for c in compared}


def _is_tie(one: Trial, other: Trial, verdicts: dict[frozenset[int], Verdict]) -> bool:
    verdict = verdicts.get(frozenset((one.number, other.number)))
    if verdict is not None:
        return verdict is not Verdict.FASTER
    if one.throughput is None or other.throughput is None:
        return False
    slower, faster = sorted((one.throughput, other.throughput), key=lambda speed: speed.mean)
    return slower.upper >= faster.lower
