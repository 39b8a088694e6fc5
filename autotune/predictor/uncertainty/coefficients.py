"""The physical coefficients that may correct a prediction from first principles.

Each is the logarithm of a factor; 0 means that the prior is right. A curve describes one strategy,
or a table of strategies if its records hold arrays. Does not know how coefficients are fitted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.predictor.arithmetic import chosen, greatest, logarithm
from autotune.predictor.step_time.model import StepParts
from autotune.predictor.uncertainty.map_fit import Coefficient
from autotune.trials.trial import Prediction

__all__ = ["ACTIVATIONS", "MEMORY_COEFFICIENTS", "TIME_COEFFICIENTS", "MemoryCurve", "TimeCurve"]

_OVERHEAD_S = 0.01
"""Seconds in the unit of the coefficient for the fixed overhead of a step."""

TIME_COEFFICIENTS = (
    Coefficient(spread=0.12, lower=-0.9, upper=0.9),  # Time of matrix products and attention.
    Coefficient(spread=0.15, lower=-0.9, upper=0.9),  # Memory traffic and the update.
    Coefficient(spread=0.35, lower=-1.4, upper=1.4),  # Host, where the device waits for it.
    Coefficient(spread=0.35, lower=-1.4, upper=1.4),  # Host, ZeRO-3 hooks.
    Coefficient(spread=0.5, lower=-1.4, upper=1.4),  # Communication between ranks.
    Coefficient(spread=0.4, lower=-1.4, upper=1.4),  # Transfers between host and device.
    Coefficient(spread=1.0, lower=0.0, upper=10.0),  # Overhead of a step, in its unit.
)
"""Coefficients of the step time. A spread covers the differences between fits to single sets of
records on one kind of device, and more for devices without records: a launch took 8.1 µs on one
host and about 5 µs on another."""

_SLACK = ("allocator", "process")
ACTIVATIONS = ("activations", "logits")
"""Parts of a peak that the first coefficient of memory scales."""

MEMORY_COEFFICIENTS = (
    Coefficient(spread=0.05, lower=-0.3, upper=0.3),  # Activations and logits.
    Coefficient(spread=0.7, lower=-3.0, upper=1.5),  # The allocator's slack.
)

_PARTS = tuple(field.name for field in fields(StepParts))


class TimeCurve:
    """The step time of one strategy, or of several, as a function of the coefficients."""

    __slots__ = ("_parts",)

    def __init__(self, parts: StepParts) -> None:
        self._parts = parts

    @classmethod
    def of_each(cls, parts: Sequence[StepParts]) -> TimeCurve:
        """The curve of several strategies, one element each."""
        # Types name the case of one strategy.
        arrays: dict[str, Any] = {
            name: np.array([getattr(of_one, name) for of_one in parts]) for name in _PARTS
        }
        return cls(StepParts(**arrays))

    def take(self, rows: NDArray[np.intp]) -> TimeCurve:
        """The curve of some elements."""
        return TimeCurve(
            StepParts(**{name: _taken(getattr(self._parts, name), rows) for name in _PARTS})
        )

    def log_value(self, at: Sequence[float]) -> float:
        """Logarithm of the seconds of a step."""
        seconds: float = logarithm(sum(self._terms(at)))
        return seconds

    def slopes(self, at: Sequence[float]) -> tuple[float, ...]:
        """Derivative by each coefficient: the fraction of the step that it scales."""
        terms = self._terms(at)
        total = sum(terms)
        overhead = _OVERHEAD_S / total
        return (*(term / total for term in terms[:-1]), overhead)

    def hidden(self, at: Sequence[float], covariance: Sequence[Sequence[float]]) -> float:
        """Increase of the logarithm if the hidden work takes one standard deviation longer.

        Host and device overlap, and the slower one hides the other. Slopes do not depend on the
        hidden one.
        """
        parts = self._parts
        index = 3 if parts.has_hooks else 2
        host_s = math.exp(at[index]) * parts.host_s
        device_s = math.exp(at[0]) * parts.compute_s + math.exp(at[1]) * parts.traffic_s
        device_s += math.exp(at[4]) * parts.link_s
        if not host_s or not device_s:
            return 0.0
        is_late = host_s < device_s
        variance = covariance[index][index] if is_late else max(covariance[0][0], covariance[1][1])
        shorter, longer = sorted((host_s, device_s))
        over = math.log(shorter / longer) + math.sqrt(variance)
        return max(0.0, over) * parts.num_micro_steps * longer / math.fsum(self._terms(at))

    def _terms(self, at: Sequence[float]) -> tuple[float, ...]:
        """Seconds of a step that each coefficient scales."""
        parts, num = self._parts, self._parts.num_micro_steps
        compute, traffic, plain, hooked, linked, moved = (math.exp(value) for value in at[:6])
        compute_s, traffic_s = compute * parts.compute_s, traffic * parts.traffic_s
        host, link_s = chosen(parts.has_hooks, hooked, plain), linked * parts.link_s
        device_s, host_s = compute_s + traffic_s + link_s, host * parts.host_s
        is_waiting = host_s > device_s
        after_forward_s = (
            parts.forward_launch_fraction * host_s + parts.backward_device_fraction * device_s
        )
        is_mixed = after_forward_s > greatest(host_s, device_s)
        of_host = chosen(is_mixed, parts.forward_launch_fraction, chosen(is_waiting, 1.0, 0.0))
        worked = num * chosen(
            is_mixed, parts.backward_device_fraction, chosen(is_waiting, 0.0, 1.0)
        )
        launched_s = num * of_host * host_s + host * parts.update_host_s
        return (
            worked * compute_s,
            worked * traffic_s + traffic * parts.update_s,
            chosen(parts.has_hooks, 0.0, launched_s),
            chosen(parts.has_hooks, launched_s, 0.0),
            worked * link_s + linked * parts.link_once_s,
            moved * (num * parts.moved_s + parts.moved_once_s),
            at[6] * _OVERHEAD_S,
        )


class MemoryCurve:
    """The peak memory of one strategy, or of several, at the moment of the predicted peak."""

    __slots__ = ("_activations", "_rest", "_slack")

    def __init__(self, peak_bytes: Any, *, activation_bytes: Any, slack_bytes: Any) -> None:
        self._activations = activation_bytes
        self._slack = slack_bytes
        self._rest = peak_bytes - activation_bytes - slack_bytes

    @classmethod
    def of(cls, prediction: Prediction) -> MemoryCurve:
        """The curve of a prediction from first principles."""
        parts = prediction.breakdown_bytes
        return cls(
            prediction.peak_memory_bytes,
            activation_bytes=sum(parts.get(part, 0) for part in ACTIVATIONS),
            slack_bytes=sum(parts.get(part, 0) for part in _SLACK),
        )

    @classmethod
    def of_each(cls, predictions: Sequence[Prediction]) -> MemoryCurve:
        """The curve of several predictions, one element each."""
        curves = [cls.of(prediction) for prediction in predictions]
        return cls(
            np.array([prediction.peak_memory_bytes for prediction in predictions]),
            activation_bytes=np.array([curve._activations for curve in curves]),
            slack_bytes=np.array([curve._slack for curve in curves]),
        )

    def take(self, rows: NDArray[np.intp]) -> MemoryCurve:
        """The curve of some elements."""
        activations, slack = _taken(self._activations, rows), _taken(self._slack, rows)
        peak = activations + slack + _taken(self._rest, rows)
        return MemoryCurve(peak, activation_bytes=activations, slack_bytes=slack)

    def log_value(self, at: Sequence[float]) -> float:
        """Logarithm of the bytes of the peak."""
        activations, slack = self._scaled(at)
        size: float = logarithm(self._rest + activations + slack)
        return size

    def slopes(self, at: Sequence[float]) -> tuple[float, ...]:
        """Derivative by each coefficient: the fraction of the peak that it scales."""
        activations, slack = self._scaled(at)
        total = self._rest + activations + slack
        return activations / total, slack / total

    def _scaled(self, at: Sequence[float]) -> tuple[float, float]:
        return self._activations * math.exp(at[0]), self._slack * math.exp(at[1])


def _taken(values: Any, rows: NDArray[np.intp]) -> Any:
    return values[rows] if isinstance(values, np.ndarray) else values
