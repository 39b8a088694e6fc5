"""Residuals of trials, applied to strategies that have most of their knobs in common.

Does not know what the numbers stand for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import attrgetter, mul, ne

import numpy as np
from numpy.typing import NDArray

from autotune.space.strategy import KNOBS, Strategy
from autotune.space.strategy_table import StrategyTable

__all__ = ["Neighbours"]

_PRIOR_WEIGHT = 2.0
"""Weight of two imaginary trials with a residual of 0, which are always there."""

_BATCH = "micro_batch_size"
_WORDS = tuple(knob for knob in KNOBS if knob != _BATCH)

_read = attrgetter(*_WORDS)


class Neighbours:
    """Nearest neighbours, held to zero (Nadaraya and Watson's kernel average, 1964).

    The distance of two strategies counts 1 for each knob that differs, and a half for a doubled
    micro-batch. A trial's weight is exp(-distance).

    Args:
        strategies: the strategies of the trials.
        left: residual of each trial.
        largest: limit of the magnitude of an expected residual.
    """

    def __init__(
        self, strategies: Sequence[Strategy], left: Sequence[float], *, largest: float
    ) -> None:
        rows = [tuple(_read(strategy)) for strategy in strategies]
        self._rows = rows
        self._moved = [i for i in range(len(_WORDS)) if len({row[i] for row in rows}) > 1]
        still = sorted(set(range(len(_WORDS))) - set(self._moved))
        self._still = [(i, rows[0][i]) for i in still]
        self._knobs = [[row[i] for i in self._moved] for row in rows]
        self._sizes = [math.log2(strategy.micro_batch_size) for strategy in strategies]
        self._left = tuple(left)
        self._largest = largest
        self._by_knobs: dict[tuple[object, ...], list[float]] = {}
        self._by_size: dict[int, list[float]] = {}

    def residual(self, strategy: Strategy) -> float:
        """The expected residual of a strategy; 0 far from all trials."""
        of_knobs = self._weights_by_knobs(_read(strategy))
        weights = list(map(mul, of_knobs, self._weights_by_size(strategy.micro_batch_size)))
        expected: float = sum(map(mul, weights, self._left)) / (sum(weights) + _PRIOR_WEIGHT)
        return max(-self._largest, min(self._largest, expected))

    def residuals(self, table: StrategyTable) -> NDArray[np.float64]:
        """The expected residual of each row of a table."""
        sizes = table.map(lambda strategy: math.log2(strategy.micro_batch_size)).spread()
        by_distance = np.exp(-np.arange(len(_WORDS) + 1.0))
        weights = np.full(len(table), _PRIOR_WEIGHT)
        expected = np.zeros(len(table))
        for row, size, left in zip(self._rows, self._sizes, self._left, strict=True):
            distance = np.zeros(len(table), np.uint8)
            for knob, value in zip(_WORDS, row, strict=True):
                distance += ~table.has(knob, (value,))
            weight = by_distance[distance] * np.exp(-np.abs(size - sizes) / 2)
            weights += weight
            expected += weight * left
        bounded: NDArray[np.float64] = np.clip(expected / weights, -self._largest, self._largest)
        return bounded

    def _weights_by_knobs(self, row: tuple[object, ...]) -> list[float]:
        found = self._by_knobs.get(row)
        if found is None:
            apart = sum(row[i] != value for i, value in self._still)
            own = [row[i] for i in self._moved]
            found = [math.exp(-apart - sum(map(ne, own, knobs))) for knobs in self._knobs]
            self._by_knobs[row] = found
        return found

    def _weights_by_size(self, micro_batch_size: int) -> list[float]:
        found = self._by_size.get(micro_batch_size)
        if found is None:
            own = math.log2(micro_batch_size)
            found = [math.exp(-abs(size - own) / 2) for size in self._sizes]
            self._by_size[micro_batch_size] = found
        return found
