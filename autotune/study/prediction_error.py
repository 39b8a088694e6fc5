"""The error of predictions against measurements, for one trial and for many.

Does not know who predicted, nor how an error is shown.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median, quantiles

from autotune.trials.breakdown import allocated_bytes
from autotune.trials.trial import Measurement, Prediction, Trial

__all__ = ["PredictionError", "errors_of", "prediction_errors"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionError:
    """The error of one quantity over the measured trials, as fractions of the measurement."""

    median: float
    p95: float
    """The 95th percentile."""
    num_trials: int


def errors_of(prediction: Prediction, measured: Measurement) -> dict[str, float]:
    """Predicted over measured, less 1: of `allocated` and `reserved` memory, and `step time`.

    A step time that rests on a guess of the rates was not shown, and has no error.
    """
    if not prediction.is_memory_known:
        return {}
    pairs: dict[str, tuple[float, float]] = {
        "allocated": (allocated_bytes(prediction), measured.peak_allocated_bytes),
        "reserved": (prediction.peak_memory_bytes, measured.peak_reserved_bytes),
    }
    if prediction.is_time_known:
        pairs["step time"] = prediction.step_time_s, measured.step_time_s
    return {name: said / seen - 1 for name, (said, seen) in pairs.items() if seen > 0}


def prediction_errors(trials: Iterable[Trial]) -> dict[str, PredictionError]:
    """Absolute errors by quantity, of the measured trials among these; empty where none is."""
    by_quantity: dict[str, list[float]] = {}
    for trial in trials:
        if trial.prediction is not None and trial.measurement is not None:
            for name, error in errors_of(trial.prediction, trial.measurement).items():
                by_quantity.setdefault(name, []).append(abs(error))
    return {name: _summed_up(errors) for name, errors in by_quantity.items()}


def _summed_up(errors: list[float]) -> PredictionError:
    p95 = quantiles(errors, n=20, method="inclusive")[-1] if len(errors) > 1 else errors[0]
    return PredictionError(median=median(errors), p95=p95, num_trials=len(errors))
