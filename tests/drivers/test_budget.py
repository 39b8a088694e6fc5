from __future__ import annotations

import pytest
from sample_study import complete, failed, prediction

from autotune.drivers.budget import Budget, expected_duration_s, parse_duration
from autotune.errors import ConfigError
from autotune.space.strategy import Strategy
from autotune.trials.trial import FailureKind, Prediction, Trial


class AsMade:
    """A predictor: 1 s a step, whatever the strategy."""

    def predict(self, strategy: Strategy) -> Prediction:
        return prediction(1.0)


def duration_s(trials: list[Trial]) -> float:
    return expected_duration_s(prediction(1.0), trials, predictor=AsMade())


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90.0), ("30m", 1800.0), ("2h", 7200.0), ("1h30m", 5400.0), ("0.5m", 30.0)],
)
def test_a_duration_is_read_in_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text, "--budget") == seconds


@pytest.mark.parametrize("text", ["2 hours", "90", "", "0s", "-5m", "1d", "30m ", "h", "1e3s"])
def test_what_is_no_duration_is_refused_by_the_flags_name(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--trial-timeout .* give a duration such as"):
        parse_duration(text, "--trial-timeout")


def test_a_budget_counts_from_the_start_of_the_command() -> None:
    now = [100.0]
    budget = Budget(60.0, started=90.0, clock=lambda: now[0])
    assert budget.remaining_s == 50.0
    now[0] = 160.0
    assert (budget.elapsed_s, budget.remaining_s) == (70.0, -10.0)


def test_before_any_trial_a_duration_is_steps_and_an_overhead() -> None:
    # Predicted at 1 s a step: two to warm up, four timed until the 4 s are over.
    assert duration_s([]) == 8.0 + 6.0


def test_finished_trials_correct_the_predicted_steps_and_the_overhead() -> None:
    # Measured at 1.1 s a step where 1 s was predicted; 6 s in all, 2.2 s of them its two steps.
    trials = [complete(0, 1.0, 1.0)]
    assert duration_s(trials) == pytest.approx(3.8 + 4 * 1.1)


def test_failed_trials_do_not_shorten_what_is_expected() -> None:
    trials = [failed(0, FailureKind.CRASH)]
    assert duration_s(trials) == duration_s([])
