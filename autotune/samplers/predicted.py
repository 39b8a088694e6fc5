"""The default sampler: the largest expected improvement for the time that a trial takes.

The next trial is the one that is expected to improve most on what was measured, for the time it
takes. The first ones are chosen to teach most about those that may be best. Does not know how a
trial is run, nor how much time is left.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autotune.learner.gaussian_process import Posterior
from autotune.learner.neighbours import Neighbours
from autotune.learner.surrogate import Surrogate
from autotune.predictor.analytic import AnalyticPredictor
from autotune.question.goal import Goal
from autotune.question.limits import Limits
from autotune.samplers.acquisition import Acquisition, Measured
from autotune.samplers.crash_probability import run_probability
from autotune.samplers.history import History, Past
from autotune.samplers.improvement import Front, Normal, probability
from autotune.samplers.shortlist import Shortlist
from autotune.space.strategy import Strategy
from autotune.space.strategy_table import StrategyTable
from autotune.trials.durations import TrialDurations, start_kind
from autotune.trials.trial import Trial

__all__ = ["PredictedSampler"]

_MOST_ROWS = 20_000
"""The most rows of a space; the rows predicted nearest to the front are kept."""

_NUM_TEACHING = 2
"""So many trials are chosen for what they teach, after the one that is predicted best."""

_NUM_PROMISING = 64
"""Rows whose posteriors are looked at together; of more, linear algebra would start threads."""

_LEAST_TRIALS = 8
"""Nothing is called unlikely before so many trials were measured."""

_UNLIKELY = 0.01
"""That any that is left fits, where none has fitted yet."""

_LARGEST_POWER_RATIO = 0.7
"""The largest deviation of the logarithm of power between strategies."""

_Array = NDArray[np.float64]
_Mask = NDArray[np.bool_]


class PredictedSampler:
    """Proposes what is expected to improve the measured front most, per second of trial.

    Args:
        table: the strategies that may be tried.
        prior: the prediction from first principles.
        limits: room on device, host and disk.
        goal: what the search optimizes.
        min_gain: the search ends when the remaining strategies are expected to improve the goal by
            less than this fraction; 0 tries every strategy.
        durations: how long trials run.
    """

    def __init__(
        self,
        table: StrategyTable,
        prior: AnalyticPredictor,
        *,
        limits: Limits,
        goal: Goal = Goal.FRONT,
        min_gain: float = 0.01,
        durations: TrialDurations | None = None,
    ) -> None:
        self._limits = limits
        self._goal = goal
        self._min_gain = min_gain
        self._table = _nearest_to_front(table, prior, self._limits) if len(table) else table
        self._shortlist = Shortlist()
        self.end_reason: str | None = None
        """Why `propose` returned None although strategies remain, in words."""
        if not len(table):
            return
        self._surrogate = Surrogate(self._table, prior)
        self._history = History(self._surrogate.row_of)
        predicted = self._surrogate.predicted
        tokens = predicted.tokens_per_second * predicted.step_time_s
        # Packed sequences have more tokens a step; the others have as many as each other.
        self._tokens = np.where(np.isclose(tokens, tokens[0]), tokens[0], tokens)
        self._has_room = (predicted.peak_host_bytes <= self._limits.host_bytes) & (
            predicted.disk_bytes <= self._limits.disk_bytes
        )
        self._durations = durations or TrialDurations()
        self._starts = self._table.map(start_kind).spread()
        composition = self._table.map(self._durations.composition_of).spread()
        self._share_run, self._num_warm_up = composition.share_run, composition.num_warm_up

    def propose(self, trials: Sequence[Trial]) -> Strategy | None:
        """The next strategy; None if no remaining strategy is worth a trial."""
        self.end_reason = None
        if not len(self._table):
            return None
        past = self._history.of(trials)
        is_left = np.ones(len(self._table), bool)
        is_left[past.tried] = False
        if not is_left.any():
            return None
        left, are_all = self._shortlist.rows(is_left, len(trials) - past.num_running)
        running = past.running
        rows = np.append(left, running)
        acquisition = self._acquisition_of(past, rows, num_running=len(running))
        gains = acquisition.gains(self._goal)[: len(left)]
        cost_s = self._durations.shown_by(trials).expected_s(
            np.exp(acquisition.step_time.mean[: len(left)]),
            starts=self._starts[left],
            share_run=self._share_run[left],
            num_warm_up=self._num_warm_up[left],
        )
        best_first = np.argsort(-gains / cost_s, kind="stable")
        promising = best_first[:_NUM_PROMISING]
        # What runs may still show that more is to be had.
        reason = None if past.num_running else self._reason_to_end(acquisition, promising)
        if not are_all and (reason or gains[promising[0]] <= 0):
            self._shortlist.forget()
            return self.propose(trials)
        if are_all:
            self._shortlist.keep(left[best_first])
        if reason:
            self.end_reason = reason
            return None
        if 0 < len(acquisition.measured) <= _NUM_TEACHING:
            telling = _telling(acquisition.step_time, promising, gains[promising])
            worth = telling * acquisition.chance[promising] / cost_s[promising]
            return self._table.strategy(int(left[promising[np.argmax(worth)]]))
        if gains[promising[0]] > 0:
            return self._table.strategy(int(left[promising[0]]))
        missing = self._surrogate.predicted.missing_bytes(self._limits)
        return self._table.strategy(int(left[np.argmin(missing[left])]))

    def _acquisition_of(
        self, past: Past, rows: NDArray[np.intp], *, num_running: int
    ) -> Acquisition:
        """The acquisition of some rows. The last rows run now and count as predicted."""
        overhead = self._surrogate.predicted.device_overhead_bytes
        limit = self._limits.device_bytes - float(np.median(overhead))
        told, num_told = past.witnesses()
        step_time = self._surrogate.step_time(told, rows, num_seen=num_told)
        memory = self._surrogate.peak_memory(told, rows, int(limit), num_seen=num_told)
        fits = probability(
            Normal(mean=memory.mean, deviation=memory.deviation),
            np.log(np.maximum(1.0, self._limits.device_bytes - overhead[rows])),
        )
        log_power = self._log_power(past.trials, rows)
        speed = self._tokens[rows] / np.exp(step_time.mean)
        running = slice(len(rows) - num_running, None)
        expected = Measured(
            speed=speed[running],
            memory=np.exp(memory.mean[running]),
            energy=(np.exp(log_power) / speed)[running],
        )
        runs = run_probability(self._table.take(rows), past.trials)
        return Acquisition(
            measured=past.measured(float(np.exp(log_power.mean()))).joined(expected),
            step_time=step_time,
            peak_memory=memory,
            log_power=log_power,
            chance=fits * self._has_room[rows] * runs,
            limit_bytes=limit,
            tokens=self._tokens[rows],
        )

    def _reason_to_end(self, acquisition: Acquisition, rows: NDArray[np.intp]) -> str | None:
        if not self._min_gain:
            return None
        if not len(acquisition.measured):
            chance = 1 - np.prod(1 - acquisition.chance[rows])
            return "no remaining strategy is likely to fit" if chance < _UNLIKELY else None
        if len(acquisition.measured) < _LEAST_TRIALS:
            return None
        if acquisition.potential(self._goal, rows) >= self._min_gain:
            return None
        return (
            f"no remaining strategy is likely to improve {_WORDS[self._goal]} by over "
            f"{100 * self._min_gain:.3g} % (--min-gain)"
        )

    def _log_power(self, trials: Sequence[Trial], rows: NDArray[np.intp]) -> _Array:
        """The logarithm of the watts of each row, as its neighbours showed them, where sought."""
        shown = [
            (t.strategy, float(np.log(m.energy_j_per_token * m.tokens_per_second)))
            for t in (trials if self._goal is Goal.ENERGY else ())
            if (m := t.measurement) is not None and m.energy_j_per_token
        ]
        if not shown:
            return np.zeros(len(rows))
        mean = float(np.mean([power for _, power in shown]))
        left = Neighbours(
            [s for s, _ in shown], [p - mean for _, p in shown], largest=_LARGEST_POWER_RATIO
        )
        return mean + left.residuals(self._table.take(rows))


_WORDS = {
    Goal.FRONT: "the front",
    Goal.BALANCED: "the front",
    Goal.THROUGHPUT: "the highest throughput",
    Goal.MEMORY: "the least memory",
    Goal.ENERGY: "the least energy per token",
}


def _telling(posterior: Posterior, rows: NDArray[np.intp], weights: _Array) -> _Array:
    """By how much measuring each row would lower the variance of all, by their weights."""
    covariance = posterior.covariance(rows)
    variance = np.diag(covariance) + posterior.noise**2
    told: _Array = (weights @ covariance**2) / variance
    return told


def _nearest_to_front(
    table: StrategyTable, prior: AnalyticPredictor, limits: Limits
) -> StrategyTable:
    """The rows of a large table that might fit and are predicted nearest to the front."""
    if len(table) <= _MOST_ROWS:
        return table
    predicted = prior.predict_table(table)
    might_fit = predicted.might_fit(limits)
    memory = predicted.peak_memory_bytes.astype(float)
    speed = np.where(might_fit, predicted.tokens_per_second, 0.0)
    front = Front.of(memory[might_fit], speed[might_fit])
    if not len(front.speed):
        return table.take(np.sort(predicted.closest(_MOST_ROWS, limits)))
    reach = front.speed[np.searchsorted(front.memory, memory, side="right") - 1]
    nearest = np.argsort(-speed / reach, kind="stable")[:_MOST_ROWS]
    return table.take(np.sort(nearest))
