"""Step time and memory of every strategy of a table, as expected after the trials so far.

Combines the predictor's coefficients, the techniques that it calls little proven, and residuals.
Does not know what is sought.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.learner.gaussian_process import Features, Kernel, Posterior, condition, distances
from autotune.predictor.analytic import AnalyticPredictor
from autotune.predictor.uncertainty.bounds import MODEL_DEVIATION
from autotune.predictor.uncertainty.coefficients import (
    ACTIVATIONS,
    MEMORY_COEFFICIENTS,
    TIME_COEFFICIENTS,
    MemoryCurve,
    TimeCurve,
)
from autotune.space.strategy import KNOBS, Strategy
from autotune.space.strategy_table import Column, StrategyTable
from autotune.trials.measurement import RUN_TO_RUN_DEVIATION
from autotune.trials.prediction_table import PredictionTable
from autotune.trials.trial import Trial

__all__ = ["Surrogate"]

_MEDIAN_ERROR = 1.25
"""Ratio of a median's standard error to a mean's, where values are normal."""

_MEMORY_NOISE = 0.004

_NUM_SCATTERS = 512
"""Trials whose scatter is cached."""

_MOST_COLUMNS = 3
"""Limit of cached distances, in multiples of the number of strategies that are asked for."""

_DEVIATIONS_IN_BOUNDS = 8.0
"""Deviations from the lower to the upper bound of memory, which enclose nearly all peaks."""

_OUT_OF_MEMORY_NOISE = 0.02
"""Deviation of the logarithm of a peak that was never reached: by how much it may exceed the limit
or the expected peak."""

_Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Views:
    """Strategies in rows, as the two Gaussian processes see them."""

    predicted_bytes: NDArray[np.int64]
    """Predicted bytes that are reserved at the peak."""
    time: Features
    memory: Features

    def take(self, rows: NDArray[np.intp]) -> _Views:
        """The views of some rows."""
        return _Views(
            predicted_bytes=self.predicted_bytes[rows],
            time=self.time.take(rows),
            memory=self.memory.take(rows),
        )


class Surrogate:
    """The posterior about the strategies of one table.

    Args:
        table: all strategies that may be proposed; some ten thousand at most, and not empty.
        prior: the prediction from first principles.
    """

    def __init__(self, table: StrategyTable, prior: AnalyticPredictor) -> None:
        self._prior = prior
        names = {name for row in _techniques(prior, table).values for name, _ in row}
        self._effects = tuple(sorted(names))
        self._table = table
        self._places: dict[Strategy, int | None] = {}
        self.predicted, self._views = self._explained(table)
        """The prior's predictions for the table, and its view as features."""
        self._columns: dict[Strategy, _Array] = {}
        self._last_apart: tuple[Sequence[Strategy], Any, _Array] = ((), None, np.empty((0, 0)))
        self._time_kernel, self._memory_kernel = Kernel(), Kernel()
        self._seen: tuple[tuple[Strategy, ...], _Views] = ((), self._views)
        self._seen_apart: _Array = np.empty((0, 0))

    def row_of(self, strategy: Strategy) -> int | None:
        """The row of a strategy in the table; None where it has none."""
        if strategy not in self._places:
            self._places[strategy] = self._table.find(strategy)
        return self._places[strategy]

    def step_time(
        self, trials: Sequence[Trial], rows: NDArray[np.intp], *, num_seen: int | None = None
    ) -> Posterior:
        """The posterior of the logarithm of the seconds of a step.

        Args:
            trials: trials to learn from; those that flushed the allocator's cache are left out.
            rows: rows of the table that are asked for.
            num_seen: how many trials there were to choose `trials` from.
        """
        measured = [
            (trial.strategy, m)
            for trial in trials
            if (m := trial.measurement) is not None and m.num_alloc_retries == 0
        ]
        observed = np.log([m.step_time_s for _, m in measured])
        seen = self._views_of_all([strategy for strategy, _ in measured])
        posterior = condition(
            self._views.time.take(rows),
            seen.time if seen else None,
            observed,
            TIME_COEFFICIENTS,
            apart=self._apart([strategy for strategy, _ in measured], rows),
            seen_apart=self._seen_apart,
            noise=RUN_TO_RUN_DEVIATION,
            extra_noise=np.array([_scatter(m.step_times_s) for _, m in measured]),
            kernel=self._time_kernel,
            num_seen=num_seen,
        )
        self._time_kernel = posterior.kernel
        return posterior

    def peak_memory(
        self,
        trials: Sequence[Trial],
        rows: NDArray[np.intp],
        limit_bytes: int,
        *,
        num_seen: int | None = None,
    ) -> Posterior:
        """The posterior of the logarithm of the bytes that the allocator reserves.

        Args:
            trials: trials to learn from; one that ran out of memory needs at least `limit_bytes`.
            rows: rows of the table that are asked for.
            limit_bytes: memory that the allocator may reserve.
            num_seen: how many trials there were to choose `trials` from.
        """
        # On the CPU the resident set may not have grown at all.
        shown = [
            trial
            for trial in trials
            if ((m := trial.measurement) is not None and m.peak_memory_bytes > 0)
            or trial.ran_out_of_memory
        ]
        seen = self._views_of_all([t.strategy for t in shown])
        expected = seen.predicted_bytes if seen else np.zeros(0)
        observed = np.array(
            [
                t.measurement.peak_memory_bytes if t.measurement else max(limit_bytes, least)
                for t, least in zip(shown, expected, strict=True)
            ]
        )
        extra = np.array([0.0 if t.measurement else _OUT_OF_MEMORY_NOISE for t in shown])
        posterior = condition(
            self._views.memory.take(rows),
            seen.memory if seen else None,
            np.log(observed),
            MEMORY_COEFFICIENTS,
            apart=self._apart([trial.strategy for trial in shown], rows),
            seen_apart=self._seen_apart,
            noise=_MEMORY_NOISE,
            extra_noise=extra,
            kernel=self._memory_kernel,
            num_seen=num_seen,
        )
        self._memory_kernel = posterior.kernel
        return posterior

    def _apart(self, strategies: Sequence[Strategy], rows: NDArray[np.intp]) -> _Array:
        """Distances of rows from strategies, [rows, strategies]; each is computed once."""
        # Both processes mostly ask for the same.
        if self._last_apart[0] == strategies and self._last_apart[1] is rows:
            return self._last_apart[2]
        for strategy in strategies:
            if strategy not in self._columns:
                row, ours = self.row_of(strategy), self._views.time.knobs
                theirs = (
                    _knobs(StrategyTable.of([strategy]))
                    if row is None
                    else {
                        knob: replace(column, codes=column.codes[[row]])
                        for knob, column in ours.items()
                    }
                )
                self._columns[strategy] = distances(ours, theirs)[:, 0]
        if len(self._columns) > _MOST_COLUMNS * len(strategies):
            self._columns = {strategy: self._columns[strategy] for strategy in strategies}
        found = np.empty((len(strategies), len(rows)))
        for index, strategy in enumerate(strategies):
            found[index] = self._columns[strategy][rows]
        self._last_apart = strategies, rows, np.ascontiguousarray(found.T)
        return self._last_apart[2]

    def _views_of_all(self, strategies: Sequence[Strategy]) -> _Views | None:
        if not strategies:
            return None
        # Both processes mostly see the same trials.
        if tuple(strategies) != self._seen[0]:
            our_rows = [p for p in map(self.row_of, strategies) if p is not None]
            if len(our_rows) == len(strategies):
                views = self._views.take(np.array(our_rows))
                self._seen_apart = self._apart(strategies, np.array(our_rows))
            else:
                views = self._explained(StrategyTable.of(strategies))[1]
                self._seen_apart = distances(views.time.knobs, views.time.knobs)
            self._seen = tuple(strategies), views
        return self._seen[1]

    def _explained(self, table: StrategyTable) -> tuple[PredictionTable, _Views]:
        explained = list(self._prior.explain_table(table))
        predicted = PredictionTable.joined([of_part for of_part, _ in explained])
        parts = [part.parts for _, part in explained]
        activations = np.concatenate(
            [np.broadcast_to(p.peak.at_peak(*ACTIVATIONS), len(p.table)) for _, p in explained]
        )
        peak = predicted.peak_memory_bytes
        view = partial(
            Features,
            num=len(table),
            knobs=_knobs(table),
        )
        lower = np.maximum(1, predicted.peak_memory_lower_bytes)
        return predicted, _Views(
            predicted_bytes=peak,
            time=view(
                curve=TimeCurve(_joined(parts)),
                effects=self._effects_of(table),
                deviation=np.full(len(table), MODEL_DEVIATION),
            ),
            memory=view(
                curve=MemoryCurve(
                    peak,
                    activation_bytes=activations,
                    slack_bytes=peak - predicted.peak_allocated_bytes,
                ),
                effects=np.zeros((len(table), 0)),
                deviation=np.log(predicted.peak_memory_upper_bytes / lower)
                / _DEVIATIONS_IN_BOUNDS,
            ),
        )

    def _effects_of(self, table: StrategyTable) -> _Array:
        column = _techniques(self._prior, table)
        known: list[Mapping[str, float]] = [dict(row) for row in column.values]
        rows = [[row.get(name, 0.0) for name in self._effects] for row in known]
        found: _Array = np.array(rows, float).reshape(len(rows), -1)[column.codes]
        return found


def _knobs(table: StrategyTable) -> dict[str, Column]:
    return {knob: table.map(attrgetter(knob)) for knob in KNOBS}


def _techniques(prior: AnalyticPredictor, table: StrategyTable) -> Any:
    return table.map(lambda strategy: tuple(sorted(prior.techniques(strategy).items())))


@lru_cache(_NUM_SCATTERS)
def _scatter(step_times_s: tuple[float, ...]) -> float:
    """Standard error of the logarithm of the median of step times; 0 for a single one."""
    if len(step_times_s) < 2:
        return 0.0
    return float(_MEDIAN_ERROR * np.std(np.log(step_times_s), ddof=1) / len(step_times_s) ** 0.5)


def _joined(records: Sequence[Any]) -> Any:
    """Several records of arrays, concatenated field by field."""
    if len(records) == 1:
        return records[0]
    names = [field.name for field in fields(records[0])]
    return type(records[0])(
        **{name: np.concatenate([getattr(r, name) for r in records]) for name in names}
    )
