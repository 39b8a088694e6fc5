from __future__ import annotations

import pytest

from autotune.drivers.budget import Budget, parse_duration
from autotune.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90.0), ("30m", 1800.0), ("2h", 7200.0), ("1h30m", 5400.0), ("0.5m", 30.0)],
)
def test_a_duration_is_read_in_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text, "--budget") == seconds


@pytest.mark.parametrize(
    "text", ["2 hours", "90", "", "0s", "-5m", "1d", "30m ", "h", "1e3s", "1h1h", "٣s", "30m1h"]
)
def test_what_is_no_duration_is_refused_by_the_flags_name(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--trial-timeout .* give a duration such as"):
        parse_duration(text, "--trial-timeout")


@pytest.mark.parametrize("text", ["0.0001s", "100000h", "9" * 400 + "h"])
def test_a_duration_is_one_that_clocks_can_count(text: str) -> None:
    with pytest.raises(ConfigError, match="give a duration from 1 ms to 10 years"):
        parse_duration(text, "--budget")


def test_a_budget_counts_from_the_start_of_the_command() -> None:
    now = [100.0]
    budget = Budget(60.0, started=90.0, clock=lambda: now[0])
    assert budget.remaining_s == 50.0
    now[0] = 160.0
    assert (budget.elapsed_s, budget.remaining_s) == (70.0, -10.0)
