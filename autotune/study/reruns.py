"""Runs of a strategy after its first: what they showed, and which trials are run again.

Does not know how trials are run or stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from autotune.trials.trial import Trial, TrialState

__all__ = ["confirmed", "reopened", "with_confirmations"]


def with_confirmations(runs: Iterable[Trial]) -> list[Trial]:
    """The trials among these, each with what the runs that confirm it showed."""
    confirming: dict[int, list[Trial]] = {}
    trials = []
    for run in runs:
        if run.confirms is None:
            trials.append(run)
        else:
            confirming.setdefault(run.confirms, []).append(run)
    return [confirmed(trial, confirming.get(trial.number, ())) for trial in trials]


def confirmed(trial: Trial, runs: Iterable[Trial]) -> Trial:
    """The trial with what some more runs of its strategy showed, as far as they ended."""
    for run in runs:
        if run.measurement is not None:
            trial = replace(trial, confirmations=(*trial.confirmations, run.measurement))
        elif run.failure is not None and not run.failure.kind.says_nothing_about_the_strategy:
            trial = replace(trial, has_failed_again=True)
    return trial


def reopened(trials: Sequence[Trial]) -> list[Trial]:
    """Those that no trial beats any more, by what both may come to; each is run again once."""
    launches = Counter(trial.strategy for trial in trials if trial.was_launched)
    return [
        trial
        for trial in trials
        if trial.state is TrialState.PRUNED
        and trial.measurement is not None
        and launches[trial.strategy] == 1
        and not any(_beats(other, trial) for other in trials)
    ]


def _beats(other: Trial, ended: Trial) -> bool:
    measured = ended.measurement
    assert measured is not None
    return (
        other.fits
        and other.peak_memory_bytes <= measured.peak_memory_bytes
        and other.least_tokens_per_second > measured.most_tokens_per_second
    )
