"""Coefficients from few observations: held to what was known, and moved by what agrees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from autotune.predictor.uncertainty.map_fit import Coefficient, fit, prior_fit


class Lines:
    """Observations that are linear in two coefficients."""

    def __init__(self, *slopes: tuple[float, float]) -> None:
        self._slopes = np.array(slopes, float).reshape(-1, 2)

    def log_value(self, at: Sequence[float]) -> Any:
        return self._slopes @ np.array(at)

    def slopes(self, at: Sequence[float]) -> tuple[Any, ...]:
        return tuple(self._slopes.T)


TWO = (Coefficient(spread=0.5), Coefficient(spread=0.5))


def test_many_exact_observations_are_met() -> None:
    lines = Lines(*[(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)] * 8)
    truth = (0.3, -0.2)
    found = fit(lines, lines.log_value(truth), TWO, scatters=[0.02] * 24)

    assert found.at == pytest.approx(truth, abs=0.01)


def test_the_covariance_is_the_inverse_of_the_precisions() -> None:
    lines = Lines((1.0, 0.0), (1.0, 0.0))
    found = fit(lines, [0.0, 0.0], TWO, scatters=[0.1, 0.1])

    # Two observations at five quarters of their normal weight, and the prior.
    assert found.covariance[0][0] == pytest.approx(1 / (2 * 1.25 / 0.1**2 + 1 / 0.5**2))
    assert found.covariance[1][1] == pytest.approx(0.5**2)
    assert found.covariance[0][1] == found.covariance[1][0] == 0


def test_what_only_one_observation_depends_on_stays_where_it_was() -> None:
    found = fit(Lines((1.0, 0.0), (1.0, 1.0)), [0.2, 0.9], TWO, scatters=[0.05, 0.05])

    assert found.at[1] == 0.0


def test_one_exception_moves_little() -> None:
    lines = Lines(*[(1.0, 0.0)] * 6)
    found = fit(lines, [0.1, 0.1, 0.1, 0.1, 0.1, 2.0], TWO, scatters=[0.04] * 6)

    assert found.at[0] == pytest.approx(0.1, abs=0.02)


def test_bounds_are_kept() -> None:
    bounded = (Coefficient(spread=1.0, lower=0.0, upper=0.5), TWO[1])
    for value, expected in ((2.0, 0.5), (-2.0, 0.0)):
        found = fit(Lines(*[(1.0, 0.0)] * 3), [value] * 3, bounded, scatters=[0.05] * 3)
        assert found.at[0] == expected


def test_nothing_is_known_but_the_spreads_before_any_observation() -> None:
    assert prior_fit(TWO) == fit(Lines(), [], TWO, scatters=[])
