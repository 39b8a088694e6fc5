"""The strategies that may still improve on what was measured, and what is expected of each.

Says by what fraction each row, and all rows together, are expected to improve the goal. Does
not know how posteriors were formed, nor what is proposed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autotune.learner.gaussian_process import Posterior
from autotune.question.goal import Goal
from autotune.samplers.improvement import (
    Front,
    Normal,
    expected_excess,
    hypervolume,
    hypervolume_gain,
)

__all__ = ["Acquisition", "Measured"]

_NUM_DRAWS = 64
"""Draws of several rows together, to see what they could add."""

_LIKELY = 0.9

_POWER_DEVIATION = 0.15
"""Deviation of the logarithm of power from that of neighbours: 0.44 to 1.15 times as much as plain
training in the rows of `results/h100-techniques` that differ most."""

_Array = NDArray[np.float64]
_Places = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Trials that fit, one element each."""

    speed: _Array
    """Tokens per second."""
    memory: _Array
    """Bytes."""
    energy: _Array
    """Per token, in any unit."""

    def __len__(self) -> int:
        """Trials."""
        return len(self.speed)

    @property
    def front(self) -> Front:
        """The steps that they make."""
        return Front.of(self.memory, self.speed)

    def joined(self, other: Measured) -> Measured:
        """With others."""
        return Measured(
            speed=np.append(self.speed, other.speed),
            memory=np.append(self.memory, other.memory),
            energy=np.append(self.energy, other.energy),
        )

    def log_value(self, goal: Goal, limit: float) -> float:
        """The logarithm of what is sought; more is better. The front is of two things alike."""
        match goal:
            case Goal.FRONT | Goal.BALANCED:
                fastest = self.log_value(Goal.THROUGHPUT, limit)
                # There is none where all that fits needs nearly the limit.
                return math.log(max(1.0, hypervolume(self.front, limit))) + fastest
            case Goal.THROUGHPUT:
                return math.log(self.speed.max())
            case Goal.MEMORY:
                return -math.log(self.memory.min())
            case Goal.ENERGY:
                return -math.log(self.energy.min())


@dataclass(frozen=True, kw_only=True, slots=True)
class Acquisition:
    """Beliefs about every row, and what was measured."""

    measured: Measured
    step_time: Posterior
    """The logarithm of seconds."""
    peak_memory: Posterior
    """The logarithm of bytes."""
    log_power: _Array
    """The logarithm of watts, up to a constant."""
    chance: _Array
    """That a row runs, and fits."""
    limit_bytes: float
    """The limit of the memory that the allocator reserves."""
    tokens: _Array
    """Tokens of an optimizer step, without padding."""

    def gains(self, goal: Goal) -> _Array:
        """By what fraction each row alone is expected to improve what is sought."""
        if goal in (Goal.FRONT, Goal.BALANCED):
            front = self.measured.front
            gain = hypervolume_gain(front, self.limit_bytes, self._speed, self._memory)
            fraction = gain / (hypervolume(front, self.limit_bytes) or 1.0)
            # Before anything was measured there is a front to be had, and no fast end of it.
            has_end = len(self.measured) > 0
            return self.chance * fraction + (self.gains(Goal.THROUGHPUT) if has_end else 0.0)
        mean, deviation = self._log_quantity(goal)
        if len(self.measured):
            level = self.measured.log_value(goal, self.limit_bytes)
        else:
            level = float(mean.min())
        return self.chance * expected_excess(Normal(mean=mean, deviation=deviation), level)

    def potential(self, goal: Goal, rows: _Places) -> float:
        """The fraction by which these rows together improve what is sought, or less: likely.

        Some trial that fits must have been measured.
        """
        draw = np.random.default_rng(0)
        before = self.measured.log_value(goal, self.limit_bytes)
        log_times = _draws(draw, self.step_time, rows)
        log_memories = _draws(draw, self.peak_memory, rows)
        runs = draw.random(log_times.shape) < self.chance[rows]
        power = np.exp(self.log_power[rows] + _POWER_DEVIATION * draw.standard_normal(len(rows)))
        gains = []
        tokens = self.tokens[rows]
        for log_time, log_memory, can_run in zip(log_times, log_memories, runs, strict=True):
            speed = tokens[can_run] / np.exp(log_time[can_run])
            drawn = Measured(
                speed=speed, memory=np.exp(log_memory[can_run]), energy=power[can_run] / speed
            )
            both = self.measured.joined(drawn)
            gains.append(both.log_value(goal, self.limit_bytes) - before)
        return float(np.quantile(gains, _LIKELY))

    def _log_quantity(self, goal: Goal) -> tuple[_Array, _Array]:
        """Mean and deviation of the logarithm of what is sought; more is better."""
        time, memory = self.step_time, self.peak_memory
        if goal is Goal.MEMORY:
            return -memory.mean, memory.deviation
        log_speed = np.log(self.tokens) - time.mean
        if goal is Goal.ENERGY:
            return log_speed - self.log_power, np.hypot(time.deviation, _POWER_DEVIATION)
        return log_speed, time.deviation

    @property
    def _speed(self) -> Normal:
        mean = self.tokens / np.exp(self.step_time.mean)
        return Normal(mean=mean, deviation=mean * self.step_time.deviation)

    @property
    def _memory(self) -> Normal:
        mean = np.exp(self.peak_memory.mean)
        return Normal(mean=mean, deviation=mean * self.peak_memory.deviation)


def _draws(draw: np.random.Generator, posterior: Posterior, rows: _Places) -> _Array:
    """Joint draws of the true values of some rows, [draws, rows]."""
    covariance = posterior.covariance(rows)
    covariance[np.diag_indices(len(rows))] += 1e-8
    root = np.linalg.cholesky(covariance)
    drawn: _Array = posterior.mean[rows] + draw.standard_normal((_NUM_DRAWS, len(rows))) @ root.T
    return drawn
