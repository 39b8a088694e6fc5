"""Chooses the trials to run again at the end of a search, and judges their order.

The fastest of many short trials is fast by luck too. So the last candidates are run again, longer
and in turns, until their order is beyond the noise, or they are as good as equal. Does not know
how trials are run or stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from autotune.question.goal import Goal
from autotune.study.pareto import pareto_front, pick
from autotune.trials.interval import Interval, mean_interval
from autotune.trials.trial import CONFIRMING_S, Measurement, Trial

__all__ = ["Comparison", "Confirmer", "Verdict", "candidates", "comparisons", "next_to_confirm"]

LEAST_RUNS = 3
"""The least runs; with fewer the interval says nothing: Student's quantile of two is 12.7."""

_MOST_RUNS = 6
"""What is not told apart by so many is a tie for whoever trains."""

_CLOSE = 0.03
"""Trials within this fraction of the fastest may be as fast, by the scatter between runs."""

_TIE = 0.01
"""Who trains does not care about less."""


_SHARE = 0.2
"""The largest fraction of the time of a search that is kept for confirming runs."""

_SLACK = 1.1
"""Runs of one trial differ in duration, and a moment passes between them: with the bare sum the
last of three would not fit any more, and the others would have been for nothing."""

_MAX_BROKEN = 3
"""So many runs that the machinery broke, and no more is tried."""


class Verdict(StrEnum):
    """What runs in turns say about two trials."""

    FASTER = "faster"
    """The first is, beyond the noise."""
    TIE = "tie"
    """The difference is within the noise, or too small to matter."""
    OPEN = "open"
    """More runs may tell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two confirmed trials, the faster one first."""

    first: Trial
    second: Trial
    difference: Interval
    """How much faster the first is, as a fraction of the second's throughput, from paired runs."""
    verdict: Verdict


def candidates(trials: Sequence[Trial], num: int) -> list[Trial]:
    """The trials that are worth confirming, at most so many.

    The fastest, what may be as fast by the scatter between runs, and the other picks.
    """
    front = pareto_front(trials)
    fitting = sorted(
        (trial for trial in trials if trial.fits), key=lambda t: (-t.tokens_per_second, t.number)
    )
    if not front:
        return []
    close = [
        t for t in fitting if t.tokens_per_second >= (1 - _CLOSE) * front[0].tokens_per_second
    ]
    picks = [pick(front, which) for which in (Goal.BALANCED, Goal.MEMORY)]
    chosen = {t.number: t for t in (front[0], *close, *picks) if t is not None}
    return list(chosen.values())[:num]


def next_to_confirm(among: Sequence[Trial]) -> Trial | None:
    """Whose turn it is: of those that need another run the one with the fewest, in their order.

    Args:
        among: the candidates.

    Returns:
        None where their order is known or a tie.
    """
    undecided = {
        trial.number
        for comparison in comparisons(among)
        if comparison.verdict is Verdict.OPEN
        for trial in (comparison.first, comparison.second)
    }
    waiting = [
        trial
        for trial in among
        if len(trial.confirmations) < LEAST_RUNS or trial.number in undecided
    ]
    return min(waiting, key=lambda trial: len(trial.confirmations), default=None)


class Confirmer:
    """Takes the trials of one search through their confirming runs.

    Args:
        num: how many trials to confirm at most.
    """

    def __init__(self, num: int) -> None:
        self._num = num
        self._whole_s: float | None = None
        self._num_broken = 0
        self.has_begun = False
        """Whether a run was started: from then on nothing new is tried."""

    def kept_s(self, trials: Sequence[Trial], remaining_s: float) -> float:
        """Seconds of what remains that are not to be spent on new trials.

        Args:
            trials: all of the search so far.
            remaining_s: what is left; at the first call, what the search has in all.
        """
        if self._whole_s is None:
            self._whole_s = remaining_s
        if self._num == 0:
            return 0.0
        limit_s = _SHARE * self._whole_s / _SLACK
        return _SLACK * _duration_s(self._affordable(candidates(trials, self._num), limit_s))

    def next(self, trials: Sequence[Trial], remaining_s: float) -> Trial | None:
        """The trial to run once more; None where nothing is to be learned in the time."""
        if self._num_broken >= _MAX_BROKEN:
            return None
        chosen = self._affordable(candidates(trials, self._num), remaining_s)
        trial = next_to_confirm(chosen)
        if trial is None or _run_s(trial) > remaining_s:
            return None
        self.has_begun = True
        return trial

    def ended(self, run: Trial) -> None:
        """A confirming run ended, however."""
        if run.failure is not None and run.failure.kind.says_nothing_about_the_strategy:
            self._num_broken += 1

    @staticmethod
    def _affordable(among: Sequence[Trial], limit_s: float) -> list[Trial]:
        """As many of the first as can be confirmed in the time."""
        chosen = list(among)
        while chosen and _duration_s(chosen) > limit_s:
            chosen.pop()
        return chosen


def _run_s(trial: Trial) -> float:
    """How long one more run is expected to take: its timed steps, and all that is beside them."""
    if trial.measurement is None:
        return 0.0
    # One that an earlier study measured has no duration here.
    beside_s = max(trial.duration_s - _timed_s(trial.measurement), trial.measurement.setup_time_s)
    again = trial.confirmations[-1:]
    return beside_s + (_timed_s(again[0]) if again else CONFIRMING_S)


def _timed_s(measured: Measurement) -> float:
    """What its timed steps took to run."""
    return sum(measured.step_times_s) * measured.share_run


def _duration_s(among: Sequence[Trial]) -> float:
    """How long the least number of runs is expected to take that all of these lack."""
    return sum(_run_s(trial) * max(0, LEAST_RUNS - len(trial.confirmations)) for trial in among)


def comparisons(trials: Sequence[Trial]) -> list[Comparison]:
    """Each confirmed trial with the next slower one."""
    runs = [trial for trial in trials if len(trial.confirmations) >= LEAST_RUNS]
    runs.sort(key=lambda trial: (-trial.tokens_per_second, trial.number))
    return [_compare(first, second) for first, second in pairwise(runs)]


def _compare(first: Trial, second: Trial) -> Comparison:
    """Runs of two trials that took turns, the latest of each together."""
    num = min(len(first.confirmations), len(second.confirmations))
    difference = mean_interval(
        [
            one.tokens_per_second / other.tokens_per_second - 1
            for one, other in zip(
                first.confirmations[-num:], second.confirmations[-num:], strict=True
            )
        ]
    )
    verdict = Verdict.OPEN
    if difference.lower > 0:
        verdict = Verdict.FASTER
    elif num >= _MOST_RUNS or (difference.upper < _TIE and difference.lower > -_TIE):
        verdict = Verdict.TIE
    return Comparison(first=first, second=second, difference=difference, verdict=verdict)
