"""Ties: trials of a front that cannot be told from others in speed.

Does not know how a front or an interval is found, nor how a tie is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autotune.study.confirmation import Comparison, Verdict
from autotune.trials.trial import Trial

__all__ = ["Tie", "ties"]


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
    verdicts = {frozenset((c.first.number, c.second.number)): c.verdict for c in compared}
    found = []
    left = list(front)
    while left:
        fastest, *rest = left
        others = tuple(trial for trial in rest if _is_tie(fastest, trial, verdicts))
        if others:
            found.append(Tie(fastest=fastest, others=others))
        left = [trial for trial in rest if trial not in others]
    return found


def _is_tie(one: Trial, other: Trial, verdicts: dict[frozenset[int], Verdict]) -> bool:
    verdict = verdicts.get(frozenset((one.number, other.number)))
    if verdict is not None:
        return verdict is not Verdict.FASTER
    if one.throughput is None or other.throughput is None:
        return False
    return other.throughput.upper >= one.throughput.lower
