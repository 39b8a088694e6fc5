"""What may be wrong with a prediction from first principles: a few physical coefficients.

Each is the logarithm of a factor, 0 where the prior is right. A curve is of one strategy, or of a
table of them where its records hold arrays. Does not know how coefficients are found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from autotune.predictor.arithmetic import chosen, logarithm
from autotune.predictor.shrinkage import Coefficient
from autotune.predictor.time import StepParts
from autotune.trial import Prediction

__all__ = ["ACTIVATIONS", "MEMORY_COEFFICIENTS", "TIME_COEFFICIENTS", "MemoryCurve", "TimeCurve"]

_OVERHEAD_S = 0.01
"""The unit of the fixed overhead of a step."""

TIME_COEFFICIENTS = (
    Coefficient(spread=0.15, lower=-0.7, upper=0.7),  # Time of matrix products and attention.
    Coefficient(spread=0.15, lower=-0.7, upper=0.7),  # Of memory traffic, and of the update.
    Coefficient(spread=0.3, lower=-1.4, upper=1.4),  # Of launches, where the device waits for it.
    Coefficient(spread=0.3, lower=-1.4, upper=1.4),  # The same with ZeRO-3's hooks of modules.
    Coefficient(spread=0.5, lower=-1.4, upper=1.4),  # Of what travels.
    Coefficient(spread=1.0, lower=0.0, upper=10.0),  # Overhead of a step, in its unit.
)

_SLACK = ("allocator", "process")
ACTIVATIONS = ("activations", "logits")
"""Parts of a peak that the first coefficient of memory stands for."""

MEMORY_COEFFICIENTS = (
    Coefficient(spread=0.05, lower=-0.3, upper=0.3),  # Activations and logits.
    Coefficient(spread=0.7, lower=-3.0, upper=1.5),  # The allocator's slack.
)


class TimeCurve:
    """The step time of one strategy."""

    __slots__ = ("_parts",)

    def __init__(self, parts: StepParts) -> None:
        self._parts = parts

    def log_value(self, at: Sequence[float]) -> float:
        """Logarithm of the seconds of a step."""
        seconds: float = logarithm(sum(self._terms(at)))
        return seconds

    def slopes(self, at: Sequence[float]) -> tuple[float, ...]:
        """By each coefficient: the part of the step that it stands for."""
        terms = self._terms(at)
        total = sum(terms)
        overhead = _OVERHEAD_S / total
        return (*(term / total for term in terms[:-1]), overhead)

    def _terms(self, at: Sequence[float]) -> tuple[float, ...]:
        """Seconds that each coefficient stands for."""
        parts, num = self._parts, self._parts.num_micro_steps
        compute, traffic, plain, hooked, moved = (math.exp(value) for value in at[:5])
        compute_s, traffic_s = compute * parts.compute_s, traffic * parts.traffic_s
        host_s = chosen(parts.has_hooks, hooked, plain) * parts.host_s
        is_waiting = host_s > compute_s + traffic_s
        launched_s = chosen(is_waiting, num * host_s, 0.0)
        return (
            chosen(is_waiting, 0.0, num * compute_s),
            chosen(is_waiting, 0.0, num * traffic_s) + traffic * parts.update_s,
            chosen(parts.has_hooks, 0.0, launched_s),
            chosen(parts.has_hooks, launched_s, 0.0),
            moved * (num * parts.moved_s + parts.moved_once_s),
            at[5] * _OVERHEAD_S,
        )


class MemoryCurve:
    """The peak memory of one strategy, at the moment that the prior says."""

    __slots__ = ("_activations", "_rest", "_slack")

    def __init__(self, peak_bytes: int, *, activation_bytes: int, slack_bytes: int) -> None:
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

    def log_value(self, at: Sequence[float]) -> float:
        """Logarithm of the bytes."""
        activations, slack = self._scaled(at)
        size: float = logarithm(self._rest + activations + slack)
        return size

    def slopes(self, at: Sequence[float]) -> tuple[float, ...]:
        """By each coefficient: the part of the peak that it stands for."""
        activations, slack = self._scaled(at)
        total = self._rest + activations + slack
        return activations / total, slack / total

    def _scaled(self, at: Sequence[float]) -> tuple[float, float]:
        return self._activations * math.exp(at[0]), self._slack * math.exp(at[1])
