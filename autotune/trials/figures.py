"""Figures of many trials in an array; only what changed is read again.

A study of ten thousand trials is asked for the next after each that ended: reading all of them
would take longer than all else. Does not know what the figures mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from autotune.trials.trial import Trial

__all__ = ["TrialFigures"]


class TrialFigures:
    """What a function reads off each trial of a list that grows, and whose elements change.

    Args:
        read: the figures of one trial, always as many; they must depend on the trial alone.
        width: how many.
    """

    def __init__(self, read: Callable[[Trial], Sequence[float]], *, width: int) -> None:
        self._read = read
        self._trials: list[Trial] = []
        self._figures: NDArray[np.float64] = np.empty((0, width))

    def of(self, trials: Sequence[Trial]) -> NDArray[np.float64]:
        """[trials, figures], in the order of the trials; valid until the next call."""
        num, num_known = len(trials), min(len(trials), len(self._trials))
        if num > len(self._figures):
            room = np.empty((2 * num, self._figures.shape[1]))
            room[:num_known] = self._figures[:num_known]
            self._figures = room
        # Trials do not change; another one replaces one that ended.
        pairs = enumerate(zip(trials, self._trials, strict=False))
        changed = [index for index, (new, old) in pairs if new is not old]
        for index in (*changed, *range(num_known, num)):
            self._figures[index] = self._read(trials[index])
        self._trials = list(trials)
        return self._figures[:num]
