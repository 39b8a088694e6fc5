"""The 95 % confidence interval of a mean, by Student's t."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import mean, stdev

__all__ = ["Interval", "mean_interval"]

_CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A mean, and how far on either side of it the true one may lie."""

    mean: float
    half_width: float
    """Infinite where nothing is known of the scatter: of a single value."""

    @property
    def lower(self) -> float:
        """The least that it may be."""
        return self.mean - self.half_width

    @property
    def upper(self) -> float:
        """The most that it may be."""
        return self.mean + self.half_width

    def widened(self, fraction: float) -> Interval:
        """With additional uncertainty, as a fraction of the mean, independent of its own."""
        return replace(self, half_width=math.hypot(self.half_width, fraction * abs(self.mean)))

    @property
    def relative_half_width(self) -> float:
        """The half-width as a fraction of the mean."""
        return self.half_width / abs(self.mean) if self.mean else math.inf


def mean_interval(values: Sequence[float]) -> Interval:
    """The interval of the mean that these values were drawn around.

    Student, "The probable error of a mean", Biometrika 6 (1908): values are taken to scatter
    normally and independently of each other.

    Raises:
        ValueError: there are no values.
    """
    return _mean_interval(tuple(values))


@lru_cache(maxsize=65536)
def _mean_interval(values: tuple[float, ...]) -> Interval:
    """The 95 % interval of the mean, cached: a search asks for each trial's again and again."""
    if not values:
        raise ValueError("no values have no mean")
    if len(values) < 2:
        return Interval(mean=values[0], half_width=math.inf)
    # Imported late: `autotune --help` does without it.
    from scipy.special import stdtrit

    quantile = float(stdtrit(len(values) - 1, (1 + _CONFIDENCE) / 2))
    half_width = quantile * stdev(values) / math.sqrt(len(values))
    return Interval(mean=mean(values), half_width=half_width)
