"""What one trial teaches a sampler: its metrics, and by how much it exceeded the memory.

Does not know how a sampler uses it.
"""

from __future__ import annotations

from dataclasses import dataclass

from optuna.trial import TrialState as OptunaState

from autotune.trials.trial import METRICS, Measurement, Trial, TrialState

__all__ = ["Observation", "impossible", "observation_of"]

_LEAST_VIOLATION = 0.01
"""For what ran out of memory, or was ruled out, although its expected peak fits."""

_GREATEST_VIOLATION = 1.0
"""Twice the limit or more is all the same, lest single trials outweigh the rest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """The outcome of a trial in Optuna's terms."""

    state: OptunaState
    values: tuple[float, ...] | None = None
    """In the order of `trial.METRICS`; only of complete observations."""
    violation: float | None = None
    """Peak memory over the limit, less 1: above 0 it does not fit. None unless complete."""


def impossible(capacity_bytes: int) -> Observation:
    """The worst observation, for a choice of values that stands for no strategy."""
    return _over_memory(None, _GREATEST_VIOLATION, capacity_bytes)


def observation_of(trial: Trial, capacity_bytes: int) -> Observation | None:
    """What is to be learned from a trial; None while it runs, or where it says nothing.

    What does not fit, ran out of memory or was ruled out before launch is a complete observation
    with a violated constraint, since Optuna's samplers learn nothing from failed trials. Its
    values are those predicted, or the worst.

    Args:
        trial: in any state.
        capacity_bytes: the memory limit where the trial names none.
    """
    limit = trial.memory_limit_bytes or capacity_bytes
    failure = trial.failure
    if failure is not None and failure.kind.says_nothing_about_the_strategy:
        return None
    match trial.state:
        case TrialState.COMPLETE | TrialState.PRUNED if trial.measurement is not None:
            return _measured(trial, trial.measurement, limit)
        case TrialState.PRUNED if trial.was_launched:
            return Observation(state=OptunaState.PRUNED)
        case TrialState.PRUNED:
            return _predicted_over_memory(trial, limit)
        case TrialState.FAILED if trial.ran_out_of_memory:
            return _predicted_over_memory(trial, limit)
        case TrialState.FAILED:
            return Observation(state=OptunaState.FAIL)
    return None


def _measured(trial: Trial, measurement: Measurement, limit_bytes: int) -> Observation:
    excess = measurement.peak_device_bytes / limit_bytes - 1
    return Observation(
        state=OptunaState.COMPLETE,
        values=tuple(float(getattr(measurement, metric.name)) for metric in METRICS),
        violation=min(excess, 0.0) if trial.is_within_memory else _clipped(excess),
    )


def _predicted_over_memory(trial: Trial, limit_bytes: int) -> Observation:
    if trial.prediction is None:
        return _over_memory(None, _GREATEST_VIOLATION, limit_bytes)
    excess = _clipped(trial.prediction.peak_device_bytes / limit_bytes - 1)
    return _over_memory(trial.prediction.tokens_per_second, excess, limit_bytes)


def _over_memory(
    tokens_per_second: float | None, violation: float, limit_bytes: int
) -> Observation:
    values = {
        "tokens_per_second": tokens_per_second or 0.0,
        "peak_memory_bytes": (1 + violation) * limit_bytes,
    }
    return Observation(
        state=OptunaState.COMPLETE,
        values=tuple(values[metric.name] for metric in METRICS),
        violation=violation,
    )


def _clipped(excess: float) -> float:
    return min(max(excess, _LEAST_VIOLATION), _GREATEST_VIOLATION)
