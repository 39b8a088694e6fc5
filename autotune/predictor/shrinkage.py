"""Fits few coefficients to few observations, towards zero: what nothing speaks for stays there.

Does not know what is predicted, nor what the coefficients mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol

__all__ = ["Coefficient", "Curve", "fit"]

_NUM_SWEEPS = 12
_TO_DEVIATION = 1.48
"""From the median of absolute errors to their standard deviation, where they are normal."""

_LEAST_SLOPE = 0.01
"""An observation of which less depends on a coefficient is no witness to it."""

_TINY = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True)
class Coefficient:
    """What is known of a coefficient before any observation: it is about 0."""

    spread: float
    """Standard deviation."""
    lower: float = -math.inf
    upper: float = math.inf


class Curve(Protocol):
    """One observation's logarithm as a function of the coefficients."""

    def log_value(self, at: Sequence[float]) -> float:
        """The logarithm of what is predicted."""
        ...

    def slopes(self, at: Sequence[float]) -> tuple[float, ...]:
        """Its derivative by each coefficient."""
        ...


def fit(
    curves: Sequence[Curve],
    observed: Sequence[float],
    coefficients: Sequence[Coefficient],
    *,
    scatter: float,
) -> tuple[float, ...]:
    """The coefficients that explain logarithms best, held to zero by their spread.

    Ridge regression by Gauss-Newton, one coordinate after the other, with Huber's weights (Robust
    Estimation of a Location Parameter, 1964) on the scale of the median error. A coefficient that
    only one observation depends on stays at zero, since no other could contradict it.

    Args:
        curves: one for each observation.
        observed: their logarithms.
        coefficients: what is known of each.
        scatter: least standard deviation of an observation's logarithm.
    """
    at = [0.0] * len(coefficients)
    free = _with_two_witnesses(curves, at)
    for _ in range(_NUM_SWEEPS):
        errors = _errors(curves, observed, at)
        scale = max(scatter, _TO_DEVIATION * median(map(abs, errors)))
        for place in free:
            errors = _errors(curves, observed, at)
            precision = 1 / coefficients[place].spread ** 2
            pull, weight = -at[place] * precision, precision
            for curve, error in zip(curves, errors, strict=True):
                slope = curve.slopes(at)[place]
                trust = min(1.0, scale / max(abs(error), _TINY)) / scale**2
                pull += trust * slope * error
                weight += trust * slope**2
            moved = at[place] + pull / weight
            at[place] = min(coefficients[place].upper, max(coefficients[place].lower, moved))
    return tuple(at)


def _with_two_witnesses(curves: Sequence[Curve], at: Sequence[float]) -> list[int]:
    slopes = [curve.slopes(at) for curve in curves]
    return [
        place
        for place in range(len(at))
        if sum(of_one[place] > _LEAST_SLOPE for of_one in slopes) > 1
    ]


def _errors(
    curves: Sequence[Curve], observed: Sequence[float], at: Sequence[float]
) -> list[float]:
    return [value - curve.log_value(at) for curve, value in zip(curves, observed, strict=True)]
