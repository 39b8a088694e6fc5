"""Fits few coefficients to few observations, towards zero: what nothing speaks for stays there.

Does not know what is predicted, nor what the coefficients mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul
from typing import Protocol

__all__ = ["Coefficient", "Curve", "Fit", "fit", "untaught"]

_NUM_ROUNDS = 8

_SETTLED = 1e-4
"""Of its spread: coefficients that move less have been found."""

_FREEDOM = 4
"""Degrees of freedom of Student's t that errors are taken to follow: an exception is met now and
then, and moves little."""


_LEAST_SLOPE = 0.1
"""An observation of which less depends on a coefficient is no witness to it."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """What is known of the coefficients after the observations."""

    at: tuple[float, ...]
    """The most likely values."""
    covariance: tuple[tuple[float, ...], ...]
    """How far off they may be, and which together."""


def untaught(coefficients: Sequence[Coefficient]) -> Fit:
    """What is known before any observation."""
    spreads = [coefficient.spread**2 for coefficient in coefficients]
    places = range(len(spreads))
    covariance = tuple(tuple(spreads[i] if i == j else 0.0 for j in places) for i in places)
    return Fit(at=tuple(0.0 for _ in places), covariance=covariance)


def fit(
    curves: Sequence[Curve],
    observed: Sequence[float],
    coefficients: Sequence[Coefficient],
    *,
    scatters: Sequence[float],
) -> Fit:
    """The coefficients that explain logarithms best, held to zero by their spread.

    The maximum of the posterior by Gauss-Newton, with normal priors and errors of Student's t as
    reweighted least squares: Lange, Little and Taylor, Robust Statistical Modeling Using the t
    Distribution (JASA 84, 1989). The covariance is that of the last linearisation.

    Args:
        curves: one for each observation.
        observed: their logarithms.
        coefficients: what is known of each.
        scatters: standard deviation of each observation's logarithm about the curve.
    """
    at = [0.0] * len(coefficients)
    doubted = _with_one_witness(curves, at)
    inverse: list[list[float]] = []
    for _ in range(_NUM_ROUNDS):
        normal, pull = _normal_equations(curves, observed, coefficients, at, scatters)
        inverse = _inverse(normal)
        farthest = 0.0
        for place, coefficient in enumerate(coefficients):
            if place in doubted:
                continue
            moved = at[place] + sum(map(mul, inverse[place], pull))
            before, at[place] = at[place], min(coefficient.upper, max(coefficient.lower, moved))
            farthest = max(farthest, abs(at[place] - before) / coefficient.spread)
        if farthest < _SETTLED:
            break
    return Fit(at=tuple(at), covariance=tuple(map(tuple, inverse)))


def _with_one_witness(curves: Sequence[Curve], at: Sequence[float]) -> frozenset[int]:
    slopes = [curve.slopes(at) for curve in curves]
    return frozenset(
        place
        for place in range(len(at))
        if sum(of_one[place] > _LEAST_SLOPE for of_one in slopes) < 2
    )


def _normal_equations(
    curves: Sequence[Curve],
    observed: Sequence[float],
    coefficients: Sequence[Coefficient],
    at: Sequence[float],
    scatters: Sequence[float],
) -> tuple[list[list[float]], list[float]]:
    """Matrix and right side of one step of Gauss-Newton."""
    places = range(len(at))
    precisions = [1 / coefficient.spread**2 for coefficient in coefficients]
    normal = [[precisions[i] if i == j else 0.0 for j in places] for i in places]
    pull = [-value * precision for value, precision in zip(at, precisions, strict=True)]
    for curve, value, scatter in zip(curves, observed, scatters, strict=True):
        error, slopes = value - curve.log_value(at), curve.slopes(at)
        weight = (_FREEDOM + 1) / (_FREEDOM * scatter**2 + error**2)
        for i in places:
            scaled = weight * slopes[i]
            pull[i] += scaled * error
            for j in places:
                normal[i][j] += scaled * slopes[j]
    return normal, pull


def _inverse(matrix: list[list[float]]) -> list[list[float]]:
    """Of a small positive definite matrix, by Gauss and Jordan: pivots are never small."""
    size = len(matrix)
    rows = [[*row, *(float(i == j) for j in range(size))] for i, row in enumerate(matrix)]
    for place in range(size):
        pivot = rows[place][place]
        rows[place] = [value / pivot for value in rows[place]]
        for other in range(size):
            if other != place and rows[other][place]:
                factor = rows[other][place]
                rows[other] = [
                    a - factor * b for a, b in zip(rows[other], rows[place], strict=True)
                ]
    return [row[size:] for row in rows]
