"""Fits few coefficients to few observations, each shrunk towards zero.

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
"""Of its spread: coefficients that move less have been found."""

_FREEDOM = 4
"""Degrees of freedom of Student's t that errors are taken to follow: an exception is met now and
then, and moves little."""

_LEAST_SLOPE = 0.1
"""An observation of which less depends on a coefficient is no witness to it."""

_LEAST_WITNESSES = 2
"""With fewer a coefficient stays where it was."""

_Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Coefficient:
    """What is known of a coefficient before any observation: it is about 0."""

    spread: float
    """Standard deviation."""
    lower: float = -math.inf
    upper: float = math.inf


class Curve(Protocol):
    """Logarithms of observations as functions of the coefficients.

    Each value is an array of one element for each observation, or a number that all share.
    """

    def log_value(self, at: Sequence[float]) -> Any:
        """The logarithm of what is predicted."""
        ...

    def slopes(self, at: Sequence[float]) -> tuple[Any, ...]:
        """Its derivative by each coefficient."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """What is known of the coefficients after the observations."""

    at: tuple[float, ...]
    """The most likely values."""
    covariance: tuple[tuple[float, ...], ...]
    """How far off they may be, and which together."""


def prior_fit(coefficients: Sequence[Coefficient]) -> Fit:
    """What is known before any observation."""
    spreads = [coefficient.spread**2 for coefficient in coefficients]
    places = range(len(spreads))
    covariance = tuple(tuple(spreads[i] if i == j else 0.0 for j in places) for i in places)
    return Fit(at=tuple(0.0 for _ in places), covariance=covariance)


def fit(
    curve: Curve,
    observed: Sequence[float] | _Array,
    coefficients: Sequence[Coefficient],
    *,
    scatters: Sequence[float] | _Array,
) -> Fit:
    """The coefficients that explain logarithms best, held to zero by their spread.

    The maximum of the posterior by Gauss-Newton, with normal priors and errors of Student's t as
    reweighted least squares: Lange, Little and Taylor, Robust Statistical Modeling Using the t
    Distribution (JASA 84, 1989). The covariance is that of the last linearisation.

    Args:
        curve: of all observations.
        observed: their logarithms.
        coefficients: what is known of each.
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
    """[coefficients, observations]."""
    return np.stack([np.broadcast_to(slope, num) for slope in curve.slopes(at.tolist())])
