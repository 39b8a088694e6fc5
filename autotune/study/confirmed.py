"""Trials together with the runs that confirm them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from autotune.trials.trial import Trial

__all__ = ["confirmed", "with_confirmations"]


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
