"""Predictions corrected by finished trials of the same question.

Fits few coefficients, each of a physical quantity and held to its prior. What remains is taken
from trials that have most knobs in common. Does not know which strategies are tried, nor what a
correction is used for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.learner.neighbours import Neighbours
from autotune.predictor.analytic import AnalyticPredictor
from autotune.predictor.arithmetic import exponential, greatest, least, logarithm, whole
from autotune.predictor.table import Explanation
from autotune.predictor.uncertainty.bounds import MODEL_DEVIATION, log_bounds
from autotune.predictor.uncertainty.coefficients import (
    ACTIVATIONS,
    MEMORY_COEFFICIENTS,
    TIME_COEFFICIENTS,
    MemoryCurve,
    TimeCurve,
)
from autotune.predictor.uncertainty.map_fit import Coefficient, Curve, Fit, fit
from autotune.space.strategy import Strategy
from autotune.space.strategy_table import StrategyTable
from autotune.trials.prediction_table import PredictionTable
from autotune.trials.trial import Prediction, Trial, TrialState

__all__ = ["CalibratedPredictor"]

_LARGEST_MEMORY_CORRECTION = math.log(1.15)
"""Largest correction of memory, as a logarithm: what is further off is an exception, since memory
is arithmetic, and no reason to move the others."""

_LARGEST_TIME_CORRECTION = math.log(4.0)
_LARGEST_TIME_RESIDUAL = math.log(2.0)

_TIME_SCATTER = 0.06
"""Deviation of the logarithm of a measured step time about a fitted machine: 3 % between two runs
of the same work on one H100, and what coefficients cannot mend of one question."""

_MEMORY_SCATTER = 0.015

_PRIOR_TRIALS = 10
"""Weight of the prior's interval, in trials."""

_INTERVAL_SCATTERS = 2.5

_NUM_LATEST = 1024
"""Strategies whose written form is cached: the same trials are learned from repeatedly."""

_TO_DEVIATION = 1.48
"""Factor from the median of absolute errors to their standard deviation, if they are normal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Samples:
    """The trials as one of the two fits sees them, one element each."""

    strategies: Sequence[Strategy]
    curve: Curve
    log_measured: NDArray[np.float64]
    scatters: NDArray[np.float64]
    """Deviation of each measurement from what any coefficients can say."""
    techniques: frozenset[str]
    """Little-proven techniques that some of the strategies use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Correction:
    """What the trials teach about one quantity: step time or memory."""

    fit: Fit
    neighbours: Neighbours | None
    """None where the trials are of another question."""
    scatter: float
    """Root mean square of the residuals of the trials and of the expected residuals."""

    def log_value(self, strategy: Strategy, curve: Curve) -> float:
        value = float(curve.log_value(self.fit.at))
        return value + self.neighbours.residual(strategy) if self.neighbours else value

    def log_values(self, table: StrategyTable, curve: Curve) -> Any:
        """Logarithm of the quantity for each row of a table; the curve holds arrays."""
        values = curve.log_value(self.fit.at)
        return values + self.neighbours.residuals(table) if self.neighbours else values


class CalibratedPredictor:
    """An analytic prediction, and what finished trials teach about it.

    Learns from measured trials alone, and from none whose allocator had to flush its cache. With
    fewer than two of them it predicts what the prior does.

    Args:
        prior: the prediction from first principles.
        trials: in any order, of the same question or of `source`'s.
        source: the prior of another question that the trials are of. Then the coefficients alone
            are taken over, since what is left belongs to strategies of that question; and so is
            the prior's own interval of memory, since nothing of this question was held out.
    """

    def __init__(
        self,
        prior: AnalyticPredictor,
        trials: Iterable[Trial] = (),
        *,
        source: AnalyticPredictor | None = None,
    ) -> None:
        self._prior = prior
        times, memories = _samples(source or prior, trials)
        self._num_trials = 0 if source else len(times.strategies)
        self._seen = times.techniques
        self._time = _learn(
            times,
            TIME_COEFFICIENTS,
            scatter=_TIME_SCATTER,
            before=MODEL_DEVIATION,
            largest=_LARGEST_TIME_RESIDUAL,
            is_own=source is None,
        )
        self._memory = _learn(
            memories,
            MEMORY_COEFFICIENTS,
            scatter=_MEMORY_SCATTER,
            before=_MEMORY_SCATTER,
            largest=_LARGEST_MEMORY_CORRECTION,
            is_own=source is None,
        )

    def learn(self, trials: Iterable[Trial]) -> CalibratedPredictor:
        """A predictor of the same prior that has learned from these trials, and no others."""
        return CalibratedPredictor(self._prior, trials)

    def predict(self, strategy: Strategy) -> Prediction:
        """Peak memory and step time of one strategy, with their uncertainty."""
        prediction, parts = self._prior.explain(strategy)
        if self._time is not None:
            unproven = self._prior.techniques(strategy)
            deviations = [unproven[name] for name in unproven if name not in self._seen]
            curve = TimeCurve(parts)
            prediction = _with_step_time(prediction, self._time, strategy, curve, deviations)
        if self._memory is not None:
            prediction = _with_memory(prediction, self._memory, strategy, self._num_trials)
        return prediction

    def predict_table(self, table: StrategyTable) -> PredictionTable:
        """Peak memory and step time of every strategy of a table, in its order."""
        return PredictionTable.joined(
            [self._corrected(*of_part) for of_part in self._prior.explain_table(table)]
        )

    def _corrected(self, predicted: PredictionTable, part: Explanation) -> PredictionTable:
        if self._time is not None:
            log_s = self._time.log_values(part.table, TimeCurve(part.parts))
            factor = _time_factor(log_s, predicted.step_time_s)
            predicted = replace(
                predicted,
                step_time_s=predicted.step_time_s * factor,
                tokens_per_second=predicted.tokens_per_second / factor,
            )
        if self._memory is not None:
            peak = part.peak
            curve = MemoryCurve(
                peak.expected_bytes,
                activation_bytes=peak.at_peak(*ACTIVATIONS),
                slack_bytes=peak.expected_bytes - peak.allocated_bytes,
            )
            log_bytes = self._memory.log_values(part.table, curve)
            moved = _moved_peak(predicted, log_bytes, self._memory.scatter, self._num_trials)
            predicted = replace(predicted, **moved)
        return predicted


def _with_step_time(
    prediction: Prediction,
    correction: _Correction,
    strategy: Strategy,
    curve: TimeCurve,
    deviations: Sequence[float],
) -> Prediction:
    factor = _time_factor(correction.log_value(strategy, curve), prediction.step_time_s)
    below, above = log_bounds(curve, correction.fit, deviations, rest=correction.scatter)
    step_time_s = prediction.step_time_s * factor
    return replace(
        prediction,
        step_time_s=step_time_s,
        step_time_lower_s=step_time_s * math.exp(-below),
        step_time_upper_s=step_time_s * math.exp(above),
        is_time_known=True,
        step_parts_s={part: s * factor for part, s in prediction.step_parts_s.items()},
        tokens_per_second=prediction.tokens_per_second / factor,
    )


def _time_factor(log_s: Any, step_time_s: Any) -> Any:
    limit, ratio = _LARGEST_TIME_CORRECTION, log_s - logarithm(step_time_s)
    return exponential(least(limit, greatest(-limit, ratio)))


def _with_memory(
    prediction: Prediction, correction: _Correction, strategy: Strategy, num_trials: int
) -> Prediction:
    """The prediction with a corrected peak; its parts are scaled by the same factor."""
    log_bytes = correction.log_value(strategy, MemoryCurve.of(prediction))
    moved = _moved_peak(prediction, log_bytes, correction.scatter, num_trials)
    factor = moved["peak_memory_bytes"] / prediction.peak_memory_bytes
    breakdown = {p: int(n * factor) for p, n in prediction.breakdown_bytes.items()}
    return replace(prediction, **moved, breakdown_bytes=breakdown)


def _moved_peak(
    prediction: Prediction | PredictionTable, log_bytes: Any, scatter: float, num_trials: int
) -> dict[str, Any]:
    """The corrected peak, kept within the prior's interval, and the interval around it."""
    limit, before = _LARGEST_MEMORY_CORRECTION, prediction.peak_memory_bytes
    lower, upper = prediction.peak_memory_lower_bytes, prediction.peak_memory_upper_bytes
    ratio = least(limit, greatest(-limit, log_bytes - logarithm(before)))
    expected = least(greatest(whole(before * exponential(ratio)), lower), upper)
    trust = num_trials / (num_trials + _PRIOR_TRIALS)
    seen = trust * _INTERVAL_SCATTERS * scatter
    below = (1 - trust) * logarithm(before / greatest(1, least(lower, before))) + seen
    above = (1 - trust) * logarithm(greatest(upper, before) / before) + seen
    return {
        "peak_memory_bytes": expected,
        "peak_allocated_bytes": whole(prediction.peak_allocated_bytes * (expected / before)),
        "peak_memory_lower_bytes": least(expected, whole(expected * exponential(-below))),
        "peak_memory_upper_bytes": greatest(expected, whole(expected * exponential(above))),
    }


def _samples(prior: AnalyticPredictor, trials: Iterable[Trial]) -> tuple[_Samples, _Samples]:
    """Samples of step time and of memory, in an order independent of the trials' order."""
    usable = [
        (trial.strategy, trial.measurement)
        for trial in trials
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        and trial.measurement is not None
        and trial.measurement.num_alloc_retries == 0
        and trial.measurement.step_time_s > 0
        and trial.measurement.peak_memory_bytes > 0
    ]
    usable.sort(key=lambda t: (_written(t[0]), t[1].step_time_s, t[1].peak_memory_bytes))
    strategies = [strategy for strategy, _ in usable]
    deviations = [prior.techniques(strategy) for strategy in strategies]
    shared = set(deviations[0]).intersection(*deviations) if deviations else set()
    used = frozenset[str]().union(*deviations)
    explained = [prior.explain(strategy) for strategy in strategies]
    # The error of a technique that only some trials use says nothing about the machine.
    of_techniques = [
        math.hypot(*(deviation for name, deviation in of_one.items() if name not in shared))
        for of_one in deviations
    ]
    times = _Samples(
        strategies=strategies,
        curve=TimeCurve.of_each([parts for _, parts in explained]),
        log_measured=np.log([measured.step_time_s for _, measured in usable]),
        scatters=np.hypot(_TIME_SCATTER, of_techniques),
        techniques=used,
    )
    memories = _Samples(
        strategies=strategies,
        curve=MemoryCurve.of_each([prediction for prediction, _ in explained]),
        log_measured=np.log([measured.peak_memory_bytes for _, measured in usable]),
        scatters=np.full(len(usable), _MEMORY_SCATTER),
        techniques=used,
    )
    return times, memories


_written = lru_cache(_NUM_LATEST)(repr)


def _learn(
    samples: _Samples,
    coefficients: Sequence[Coefficient],
    *,
    scatter: float,
    before: float,
    largest: float,
    is_own: bool,
) -> _Correction | None:
    """Fit the coefficients of one quantity, and keep the residuals of the trials.

    Args:
        samples: trials of one quantity.
        coefficients: what is known of each before any trial.
        scatter: deviation of a measurement about the truth.
        before: the scatter that is expected, which weighs as much as `_PRIOR_TRIALS` trials.
        largest: limit of the residual that is taken from neighbours.
        is_own: whether the samples are of the question that is predicted.

    Returns:
        None where there are fewer than two samples: the prior holds.
    """
    num = len(samples.strategies)
    if num < 2:
        return None
    found = fit(samples.curve, samples.log_measured, coefficients, scatters=samples.scatters)
    left = samples.log_measured - samples.curve.log_value(found.at)
    # A residual that no other trial has may be an exception.
    usual = max(scatter, _TO_DEVIATION * float(np.median(np.abs(left))))
    clipped = np.clip(left, -3 * usual, 3 * usual)
    squares = float((clipped**2).sum()) + _PRIOR_TRIALS * before**2
    return _Correction(
        fit=found,
        neighbours=Neighbours(samples.strategies, clipped.tolist(), largest=largest)
        if is_own
        else None,
        scatter=math.sqrt(squares / (num + _PRIOR_TRIALS)),
    )
