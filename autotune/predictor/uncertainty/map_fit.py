"""Fits a few coefficients to a few observations, with priors that shrink them towards zero.

Does not know what is predicted, nor what the coefficients mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Coefficient", "Curve", "Fit", "fit", "prior_fit"]

_NUM_ROUNDS = 8

_SETTLED = 1e-4
"""A coefficient that moves by less than this fraction of its spread has converged."""

_FREEDOM = 4
"""Degrees of freedom of Student's t, which errors are assumed to follow: outliers are expected,
and change the coefficients little."""

_LEAST_SLOPE = 0.1
"""Least slope at which an observation informs about a coefficient."""

_LEAST_WITNESSES = 2
"""Least number of observations that inform about a coefficient; with fewer it stays at 0."""

_Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Coefficient:
    """The prior of a coefficient: normal, with mean 0, within bounds."""

    spread: float
    """Standard deviation of the prior."""
    lower: float = -math.inf
    upper: float = math.inf


class Curve(Protocol):
    """Logarithms of observations as functions of the coefficients.

    Each value is an array with one element for each observation, or one number for all.
    """

    def log_value(self, at: Sequence[float]) -> Any:
        """The logarithm of the predicted value."""
        ...

    def slopes(self, at: Sequence[float]) -> tuple[Any, ...]:
        """The derivative of the logarithm by each coefficient."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """The posterior of the coefficients after the observations."""

    at: tuple[float, ...]
    """The most likely values of the coefficients."""
    covariance: tuple[tuple[float, ...], ...]
    """Covariance of the coefficients about these values, [coefficients, coefficients]."""


def prior_fit(coefficients: Sequence[Coefficient]) -> Fit:
    """The fit before any observation: zeros, with the variances of the priors."""
    spreads = [coefficient.spread**2 for coefficient in coefficients]
    indices = range(len(spreads))
    covariance = tuple(tuple(spreads[i] if i == j else 0.0 for j in indices) for i in indices)
    return Fit(at=tuple(0.0 for _ in indices), covariance=covariance)


def fit(
    curve: Curve,
    observed: Sequence[float] | _Array,
    coefficients: Sequence[Coefficient],
    *,
    scatters: Sequence[float] | _Array,
) -> Fit:
    """The coefficients that explain the logarithms best, shrunk towards zero by their priors.

    The maximum of the posterior by Gauss-Newton, with normal priors and errors of Student's t as
    reweighted least squares: Lange, Little and Taylor, Robust Statistical Modeling Using the t
    Distribution (JASA 84, 1989). The covariance is that of the last linearisation.

    Args:
        curve: the curve of all observations.
        observed: logarithms of the observations.
        coefficients: the prior of each coefficient.
        scatters: standard deviation of each observation's logarithm about the curve.
    """
    logs, variances = np.asarray(observed, float), np.square(np.asarray(scatters, float))
    spreads = np.array([coefficient.spread for coefficient in coefficients])
    lower = np.array([coefficient.lower for coefficient in coefficients])
    upper = np.array([coefficient.upper for coefficient in coefficients])
    at: _Array = np.zeros(len(coefficients))
    is_told = (_slopes(curve, at, len(logs)) > _LEAST_SLOPE).sum(axis=1) >= _LEAST_WITNESSES
    inverse = np.diag(spreads**2)
    for _ in range(_NUM_ROUNDS):
        error = logs - curve.log_value(at.tolist())
        slopes = _slopes(curve, at, len(logs))
        weighted = slopes * ((_FREEDOM + 1) / (_FREEDOM * variances + error**2))
        inverse = np.linalg.inv(weighted @ slopes.T + np.diag(spreads**-2))
        moved = np.clip(at + inverse @ (weighted @ error - at / spreads**2), lower, upper)
        before, at = at, np.where(is_told, moved, at)
        if np.abs((at - before) / spreads).max() < _SETTLED:
            break
    return Fit(at=tuple(at.tolist()), covariance=tuple(map(tuple, inverse.tolist())))


def _slopes(curve: Curve, at: _Array, num: int) -> _Array:
    """Derivatives of the curve, [coefficients, observations]."""
    return np.stack([np.broadcast_to(slope, num) for slope in curve.slopes(at.tolist())])
