"""Estimates which knob values make trials crash.

A value with which some trial ran is not; a failure is blamed alike on all other values that its
strategy had. Memory is no matter of blame. Does not know what is proposed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.space.strategy import KNOBS, Strategy
from autotune.space.strategy_table import StrategyTable
from autotune.trials.trial import Trial

__all__ = ["run_probability"]

_HIGHEST_BLAME = 0.95
"""Crash probability of the only suspected value: something else may have been the cause."""


def run_probability(table: StrategyTable, trials: Sequence[Trial]) -> NDArray[np.float64]:
    """The chance of each row to have no value that makes trials fail."""
    chance = np.ones(len(table))
    failed = [_values(table, t.strategy) for t in trials if _failed_by_itself(t)]
    if not failed:
        return chance
    ran = [trial.strategy for trial in trials if trial.measurement is not None]
    # Of most values some trial among the first has run.
    acquitted = {
        (knob, value)
        for knob, value in set[tuple[str, Any]]().union(*failed)
        if any(getattr(strategy, knob) == value for strategy in ran)
    }
    innocence: dict[tuple[str, Any], float] = {}
    for values in failed:
        suspects = values - acquitted
        for value in suspects:
            blame = _HIGHEST_BLAME / len(suspects)
            innocence[value] = innocence.get(value, 1.0) * (1 - blame)
    for (knob, value), innocent in innocence.items():
        chance *= np.where(table.has(knob, (value,)), innocent, 1.0)
    return chance


def _values(table: StrategyTable, strategy: Strategy) -> set[tuple[str, Any]]:
    """Those of the knobs that rows differ in."""
    moved = (knob for knob in KNOBS if len(table.values_of(knob)) > 1)
    return {(knob, getattr(strategy, knob)) for knob in moved}


def _failed_by_itself(trial: Trial) -> bool:
    """Whether it failed for reasons of its strategy, but not for want of memory."""
    failure = trial.failure
    return failure is not None and not (
        failure.kind.is_out_of_memory or failure.kind.says_nothing_about_the_strategy
    )
