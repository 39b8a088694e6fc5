"""The trials so far, as the sampler needs them: their rows, their figures, what they teach.

Does not know what is believed, nor what is sought.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autotune.samplers.acquisition import Measured
from autotune.space.strategy import Strategy
from autotune.trials.figures import TrialFigures
from autotune.trials.trial import Trial, TrialState

__all__ = ["History", "Past"]

_MOST_WITNESSES = 128
"""Most trials that are learned from. Of more, half are the fastest and half the latest: work
grows with the cube of their number, and at 1,000 an answer took four seconds."""

_Rows = NDArray[np.intp]


class _Figures(NamedTuple):
    """The figures of one trial, or of each trial in an array."""

    row: float
    """Its row in the table; -1 where it has none."""
    is_running: float
    fits: float
    tells: float
    """Whether anything is learned of its step time or its memory."""
    speed: float
    memory: float
    energy: float
    """Energy per token; 0 where it was not measured."""
    tokens_per_second: float
    """Throughput over all runs of the trial's strategy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Past:
    """All trials at one time."""

    trials: Sequence[Trial]
    _columns: NDArray[np.float64]
    """[figures, trials]"""

    @property
    def tried(self) -> _Rows:
        """The rows of what was tried, as far as it is of the table."""
        rows = self._column("row")
        return rows[rows >= 0].astype(np.intp)

    @property
    def running(self) -> _Rows:
        """The rows of what runs now."""
        rows = self._column("row")
        return rows[(rows >= 0) & (self._column("is_running") > 0)].astype(np.intp)

    @property
    def num_running(self) -> int:
        """Trials that run, of other tables too."""
        return int(self._column("is_running").sum())

    def measured(self, typical_power: float) -> Measured:
        """What fits; `typical_power`, in watts, stands for energy that was not measured."""
        fits = self._column("fits") > 0
        speed, energy = self._column("speed")[fits], self._column("energy")[fits]
        return Measured(
            speed=speed,
            memory=np.maximum(1.0, self._column("memory")[fits]),
            energy=np.where(energy > 0, energy, typical_power / speed),
        )

    def witnesses(self) -> tuple[list[Trial], int]:
        """Those that are learned from, in their order, and from how many they were chosen."""
        telling = np.flatnonzero(self._column("tells"))
        num = len(telling)
        if num > _MOST_WITNESSES:
            half = _MOST_WITNESSES // 2
            speeds = self._column("tokens_per_second")[telling]
            fastest = telling[np.argsort(-speeds, kind="stable")[:half]]
            telling = np.union1d(fastest, telling[-half:])
        return [self.trials[index] for index in telling.tolist()], num

    def _column(self, name: str) -> NDArray[np.float64]:
        column: NDArray[np.float64] = self._columns[_Figures._fields.index(name)]
        return column


class History:
    """Reads trials, each once until it changes.

    Args:
        row_of: the row of a strategy in the table; None where it has none.
    """

    def __init__(self, row_of: Callable[[Strategy], int | None]) -> None:
        self._row_of = row_of
        self._figures = TrialFigures(self._read, width=len(_Figures._fields))

    def of(self, trials: Sequence[Trial]) -> Past:
        """What these show; valid until others are read."""
        return Past(trials=trials, _columns=self._figures.of(trials).T)

    def _read(self, trial: Trial) -> _Figures:
        row, measured = self._row_of(trial.strategy), trial.measurement
        return _Figures(
            row=-1 if row is None else row,
            is_running=trial.state is TrialState.RUNNING,
            fits=trial.fits,
            tells=measured is not None or trial.ran_out_of_memory,
            speed=measured.tokens_per_second if measured else 0.0,
            memory=measured.peak_memory_bytes if measured else 0.0,
            energy=(measured.energy_j_per_token or 0.0) if measured else 0.0,
            tokens_per_second=trial.tokens_per_second,
        )
