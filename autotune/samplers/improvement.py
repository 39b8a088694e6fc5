"""Expected improvement of what was measured, for each strategy.

Expected improvement: Jones, Schonlau and Welch, Efficient Global Optimization (Journal of Global
Optimization 13, 1998), equation 15. Of the front: the closed form for two objectives of Emmerich,
Deutz and Klinkenberg, Hypervolume-based Expected Improvement (IEEE CEC 2011). Does not know where
posteriors come from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

__all__ = ["Front", "Normal", "expected_excess", "hypervolume", "hypervolume_gain", "probability"]

_Array = NDArray[np.float64]

_MOST_STEPS = 64
"""Most steps of a coarse front; few measured fronts have half as many."""

_NUM_TOGETHER = 256
"""Rows whose gain is worked out together."""

_FARTHEST = 8.0
_NUM_PER_DEVIATION = 500
_CUMULATIVE = np.array(
    [NormalDist().cdf(x) for x in np.linspace(-_FARTHEST, _FARTHEST, 16 * _NUM_PER_DEVIATION + 1)]
)
_RISE = np.diff(_CUMULATIVE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Normal:
    """A quantity of each row, as a normal distribution."""

    mean: _Array
    deviation: _Array

    def at(self, deviations: float) -> _Array:
        """So many deviations above the mean."""
        return self.mean + deviations * self.deviation

    def take(self, rows: slice) -> Normal:
        """Some rows."""
        return Normal(mean=self.mean[rows], deviation=self.deviation[rows])


@dataclass(frozen=True, kw_only=True, slots=True)
class Front:
    """The highest speed up to each memory: steps, both ascending; may be empty."""

    memory: _Array
    speed: _Array

    @classmethod
    def of(cls, memory: _Array, speed: _Array) -> Front:
        """The steps of what was measured."""
        order = np.lexsort((-speed, memory))
        memory, speed = memory[order], speed[order]
        highest = np.maximum.accumulate(np.concatenate([[0.0], speed]))
        is_step = speed > highest[:-1]
        return cls(memory=memory[is_step], speed=speed[is_step])

    def coarse(self) -> Front:
        """With some of its steps where there are very many: at or below it everywhere."""
        if len(self.memory) <= _MOST_STEPS:
            return self
        kept = np.linspace(0, len(self.memory) - 1, _MOST_STEPS).round().astype(int)
        return Front(memory=self.memory[kept], speed=self.speed[kept])


def hypervolume(front: Front, limit: float) -> float:
    """The area below the steps up to a memory limit.

    Over the limit it is the mean, over all amounts of memory that one may have up to it, of the
    highest speed in that memory.
    """
    edges = np.minimum(np.concatenate([front.memory, [limit]]), limit)
    return float((np.diff(edges) * front.speed).sum())


def hypervolume_gain(front: Front, limit: float, speed: Normal, memory: Normal) -> _Array:
    """By how much each row is expected to enlarge the hypervolume; speed and memory independent.

    The gain of a point is the integral, over the memory from its own to the limit, of its speed
    beyond the front's; so its expectation is a sum over the front's steps of expected excess times
    the expected part of the step that is at or beyond the point's memory.
    """
    front = front.coarse()
    steps = np.concatenate([[0.0], front.speed])[:, None]
    edges = np.minimum(np.concatenate([[0.0], front.memory, [limit]]), limit)[:, None]
    gains = []
    # A matrix of steps and rows that stays in the processor's cache.
    for first in range(0, len(speed.mean), _NUM_TOGETHER):
        some = slice(first, first + _NUM_TOGETHER)
        reach = _expected_reach(memory.take(some), edges)
        excess = expected_excess(speed.take(some), steps)
        gains.append((excess * np.diff(reach, axis=0)).sum(axis=0))
    found: _Array = np.maximum(np.concatenate([np.zeros(0), *gains]), 0.0)
    return found


def expected_excess(quantity: Normal, level: _Array | float) -> _Array:
    """How much a quantity is expected to be above a level, counting nothing where it is below."""
    above = (quantity.mean - level) / quantity.deviation
    return quantity.deviation * _ramp(above)


def probability(quantity: Normal, most: _Array | float) -> _Array:
    """That a quantity is no more than this."""
    return _cumulative((most - quantity.mean) / quantity.deviation)


def _expected_reach(memory: Normal, end: _Array | float) -> _Array:
    """How far a range that begins at a row's memory is expected to reach before an end."""
    return memory.deviation * _ramp((end - memory.mean) / memory.deviation)


def _ramp(x: _Array) -> _Array:
    """The integral of the cumulative distribution: the mean of max(0, x + a normal number)."""
    density = np.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)
    return np.where(x > _FARTHEST, x, x * _cumulative(x) + density)


def _cumulative(x: _Array) -> _Array:
    """Between its values on an even grid, whose position is known without a search."""
    position = (np.clip(x, -_FARTHEST, _FARTHEST) + _FARTHEST) * _NUM_PER_DEVIATION
    below = np.minimum(position.astype(np.intp), len(_RISE) - 1)
    found: _Array = _CUMULATIVE[below] + (position - below) * _RISE[below]
    return found
