"""A Gaussian process over the strategies of a table, around a curve with a few coefficients.

Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), sections 2.2 and 2.7: the
coefficients are random effects common to all strategies, and residuals are alike for strategies
with most knobs in common. Does not know what the quantity is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from autotune.predictor.uncertainty.map_fit import Coefficient, Curve
from autotune.space.strategy_table import Column
from autotune.trials.refit import needs_refit

__all__ = ["Features", "Kernel", "Posterior", "condition", "distances"]

_BATCH = "micro_batch_size"

_SCALES = (0.25, 0.4, 0.63, 1.0, 1.6, 2.5, 4.0)
_LENGTHS = (0.7, 1.4, 2.8)
"""Candidates for the kernel: factors of the residual deviation, and the number of knobs over which
the correlation fades. The most likely pair is taken."""

_SCALE_DEVIATION = 0.5
"""Deviation of the logarithm of the scale before any observation."""

_NUM_ROUNDS = 4

_SETTLED = 1e-3
"""Fraction of its spread: a coefficient that moves less has converged."""

_Array = NDArray[np.float64]
_Places = NDArray[np.intp]


class _RowsCurve(Curve, Protocol):
    """A curve of rows."""

    def take(self, rows: _Places) -> _RowsCurve:
        """The curve of some rows."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """Strategies in rows, as one process sees them."""

    num: int
    knobs: dict[str, Column]
    """Knobs by which strategies are compared, by name."""
    effects: _Array
    """[rows, effects]: deviation that each row has in common with others of the same column."""
    deviation: _Array
    """[rows]: deviation of the residual that the curve and the effects leave."""
    curve: _RowsCurve
    """Curve over arrays of one element a row."""

    def take(self, rows: _Places) -> Features:
        """The features of some rows."""
        return replace(
            self,
            num=len(rows),
            knobs={name: replace(c, codes=c.codes[rows]) for name, c in self.knobs.items()},
            effects=self.effects[rows],
            deviation=self.deviation[rows],
            curve=self.curve.take(rows),
        )

    def mean(self, at: Sequence[float]) -> _Array:
        """The curve at given coefficients."""
        return self._of_rows(self.curve.log_value(at))

    def slopes(self, at: Sequence[float]) -> _Array:
        """Derivatives of the curve by each coefficient, [rows, coefficients]."""
        return np.stack([self._of_rows(slope) for slope in self.curve.slopes(at)], axis=1)

    def _of_rows(self, value: Any) -> _Array:
        of_rows: _Array = np.broadcast_to(np.asarray(value, float), self.num)
        return of_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """The scale of the residuals, and over how many knobs they fade, as last found."""

    scale: float = 1.0
    length: float = _LENGTHS[1]
    num_seen: int = 0
    """Observations from which scale and length were found."""

    def is_outdated(self, num_seen: int) -> bool:
        """Whether scale and length are to be searched again."""
        return needs_refit(num_seen, self.num_seen)


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """What is believed of the quantity's logarithm for each row of a table."""

    mean: _Array
    deviation: _Array
    """Deviation of the true value, without the noise of measuring it."""
    noise: float
    """Deviation of a measurement about the truth."""
    _process: _Process

    @property
    def kernel(self) -> Kernel:
        """The kernel that was found."""
        return self._process.kernel

    def covariance(self, rows: _Places) -> _Array:
        """Covariance between some rows, [rows, rows]."""
        return self._process.covariance(rows)


class _Process:
    """A Gaussian process conditioned on observations; the curve is linear about `at`."""

    def __init__(
        self,
        table: Features,
        seen: Features | None,
        observed: _Array,
        noises: _Array,
        apart: _Array,
        seen_apart: _Array,
        coefficients: Sequence[Coefficient],
        kernel: Kernel,
        num_seen: int,
    ) -> None:
        self._table, self._seen, self._apart = table, seen, apart
        self._observed, self._noises = observed, noises
        self._coefficients = coefficients
        self._spreads = np.array([c.spread for c in coefficients])
        self._at: list[float] = [0.0] * len(coefficients)
        self.kernel = kernel
        self._scale, self._length = kernel.scale, kernel.length
        if seen is not None:
            if kernel.is_outdated(num_seen):
                self._seek_kernel(seen, seen_apart)
                self.kernel = Kernel(scale=self._scale, length=self._length, num_seen=num_seen)
            self._fit(seen, seen_apart)
        self._slopes = table.slopes(self._at)

    def _seek_kernel(self, seen: Features, apart: _Array) -> None:
        """Find scale and length by their posterior."""
        best = -math.inf
        self._linearise(seen)
        for length in _LENGTHS:
            self._scale, self._length = 1.0, length
            unscaled = self._own(seen, seen, apart)
            for scale in _SCALES:
                likelihood = self._condition(scale**2 * unscaled)
                likelihood -= math.log(scale) ** 2 / (2 * _SCALE_DEVIATION**2)
                if likelihood > best:
                    best, chosen = likelihood, (scale, length)
        self._scale, self._length = chosen

    def _fit(self, seen: Features, apart: _Array) -> None:
        """Find the coefficients by the Gauss-Newton method."""
        own = self._own(seen, seen, apart)
        self._linearise(seen)
        self._condition(own)
        for _ in range(_NUM_ROUNDS):
            moved = self._spreads**2 * (self._seen_slopes.T @ self._weights)
            found = [
                min(c.upper, max(c.lower, float(value)))
                for c, value in zip(self._coefficients, moved, strict=True)
            ]
            if np.abs(np.subtract(found, self._at) / self._spreads).max() < _SETTLED:
                break
            self._at = found
            self._linearise(seen)
            self._condition(own)
        self._inverse_root = np.linalg.inv(self._root)

    def _linearise(self, seen: Features) -> None:
        """Compute residuals and covariance of the observations, linear about the coefficients."""
        at = self._at
        self._seen_slopes = seen.slopes(at)
        self._left = self._observed - seen.mean(at) + self._seen_slopes @ np.array(at)
        self._common = self._shared(seen, seen, self._seen_slopes, self._seen_slopes)
        self._common[np.diag_indices(seen.num)] += self._noises**2

    def _condition(self, own: _Array) -> float:
        """Weigh the observations; the logarithm of their likelihood."""
        matrix = self._common + own
        self._root = np.linalg.cholesky(matrix)
        self._weights = np.linalg.solve(matrix, self._left)
        return float(-0.5 * self._left @ self._weights - np.log(np.diag(self._root)).sum())

    def _prior(
        self, a: Features, b: Features, slopes_a: _Array, slopes_b: _Array, distance: _Array
    ) -> _Array:
        return self._shared(a, b, slopes_a, slopes_b) + self._own(a, b, distance)

    def _shared(self, a: Features, b: Features, slopes_a: _Array, slopes_b: _Array) -> _Array:
        """Covariance by coefficients and effects that rows have in common, [a, b]."""
        matrix: _Array = (slopes_a * self._spreads**2) @ slopes_b.T + a.effects @ b.effects.T
        return matrix

    def _own(self, a: Features, b: Features, distance: _Array) -> _Array:
        """Covariance of residuals, [a, b]: large for strategies with most knobs in common."""
        matrix: _Array = np.exp(distance * (-1 / self._length))
        matrix *= (self._scale**2 * a.deviation)[:, None]
        matrix *= b.deviation
        return matrix

    def posterior(self, noise: float) -> Posterior:
        table, seen, slopes = self._table, self._seen, self._slopes
        mean = table.mean(self._at) - slopes @ np.array(self._at)
        variance = (slopes**2) @ self._spreads**2 + (table.effects**2).sum(axis=1)
        variance = variance + (self._scale * table.deviation) ** 2
        if seen is not None:
            cross = self._prior(table, seen, slopes, self._seen_slopes, self._apart)
            mean = mean + cross @ self._weights
            half = cross @ self._inverse_root.T
            variance = variance - np.einsum("ij,ij->i", half, half)
        deviation = np.sqrt(np.maximum(variance, 1e-12))
        return Posterior(mean=mean, deviation=deviation, noise=noise, _process=self)

    def covariance(self, rows: _Places) -> _Array:
        some, slopes = self._table.take(rows), self._slopes[rows]
        matrix = self._prior(some, some, slopes, slopes, distances(some.knobs, some.knobs))
        if self._seen is not None:
            apart = self._apart[rows]
            cross = self._prior(some, self._seen, slopes, self._seen_slopes, apart)
            half = cross @ self._inverse_root.T
            matrix = matrix - half @ half.T
        return matrix


def condition(
    table: Features,
    seen: Features | None,
    observed: _Array,
    coefficients: Sequence[Coefficient],
    *,
    apart: _Array,
    seen_apart: _Array,
    noise: float,
    extra_noise: _Array | float = 0.0,
    kernel: Kernel | None = None,
    num_seen: int | None = None,
) -> Posterior:
    """What is believed of each row of a table.

    Args:
        table: the rows.
        seen: the observed strategies; None where there are none.
        observed: logarithms of the observed values.
        coefficients: what is known of the curve's coefficients.
        apart: the `distances` between rows and observed strategies.
        seen_apart: the `distances` between observed strategies.
        noise: deviation of a measurement about the truth.
        extra_noise: additional deviation of single observations.
        kernel: scale and length as found before; searched if left out.
        num_seen: how much was observed, where not all of it is given.
    """
    noises = np.hypot(noise, np.broadcast_to(extra_noise, len(observed)))
    kernel = kernel or Kernel()
    num_seen = num_seen or len(observed)
    process = _Process(
        table, seen, observed, noises, apart, seen_apart, coefficients, kernel, num_seen
    )
    return process.posterior(noise)


def distances(ours: Mapping[str, Column], theirs: Mapping[str, Column]) -> _Array:
    """Knobs in which strategies differ, [ours, theirs]; a doubled micro-batch is half a knob."""
    found: _Array = np.zeros((len(ours[_BATCH].codes), len(theirs[_BATCH].codes)))
    for name, left in ours.items():
        right = theirs[name]
        if len(left.values) == len(right.values) == 1 and left.values[0] == right.values[0]:
            continue
        apart = np.array([[_apart(name, u, v) for v in right.values] for u in left.values])
        found += apart[left.codes][:, right.codes]
    return found


def _apart(knob: str, one: Any, other: Any) -> float:
    if knob == _BATCH:
        return abs(math.log2(one) - math.log2(other)) / 2
    return float(one != other)
