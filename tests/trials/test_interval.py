from __future__ import annotations

import math
import random

import pytest

from autotune.trials.interval import Interval, mean_interval


def test_the_half_width_is_students_quantile_times_the_error_of_the_mean() -> None:
    interval = mean_interval([1.0, 2.0, 3.0])
    # t(2 degrees, 97.5 %) = 4.303: Student's table.
    assert interval.mean == 2.0
    assert interval.half_width == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    assert (interval.lower, interval.upper) == (2.0 - interval.half_width, interval.upper)
    assert interval.relative_half_width == interval.half_width / 2.0


def test_of_a_single_value_the_scatter_is_unknown() -> None:
    assert mean_interval([3.0]) == Interval(mean=3.0, half_width=math.inf)


def test_no_values_have_no_mean() -> None:
    with pytest.raises(ValueError, match="no mean"):
        mean_interval([])


def test_nineteen_in_twenty_intervals_hold_the_true_mean() -> None:
    draw = random.Random(0)
    intervals = [mean_interval([draw.gauss(1.0, 0.05) for _ in range(4)]) for _ in range(4000)]
    held = sum(interval.lower <= 1.0 <= interval.upper for interval in intervals)
    assert held / len(intervals) == pytest.approx(0.95, abs=0.01)
