"""Trials that ended early against figures that more runs have lowered since.

Does not know how trials are run or stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from autotune.trials.trial import Trial, TrialState

__all__ = ["reopened"]


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
