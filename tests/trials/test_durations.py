"""How long a trial is expected to run."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sample_study import complete, failed, prediction

from autotune.knob_values import Offload
from autotune.space.strategy import Strategy
from autotune.trials.composition import Composition
from autotune.trials.durations import StartKind, TrialDurations, start_kind
from autotune.trials.trial import FailureKind, Prediction, Trial

HERE = Strategy(micro_batch_size=1)
ON_HOST = Strategy(zero_stage=2, micro_batch_size=1, offload_optimizer=Offload.CPU)


class AsMade:
    """A predictor: 1 s a step, whatever the strategy."""

    def predict(self, strategy: Strategy) -> Prediction:
        return prediction(1.0)


def expected_s(
    trials: list[Trial],
    strategy: Strategy = HERE,
    durations: TrialDurations | None = None,
) -> float:
    durations = durations or TrialDurations()
    return durations.expected_s(strategy, prediction(1.0), trials, predictor=AsMade())


def test_before_any_trial_it_is_a_start_and_steps() -> None:
    # Predicted at 1 s a step: one to warm up, four timed until the 4 s are over.
    assert expected_s([]) == 3.0 + 5.0


def test_finished_trials_correct_the_predicted_steps_and_the_start() -> None:
    # Measured at 1.1 s a step where 1 s was predicted; 6 s in all, 2.2 s of them its two steps.
    trials = [complete(0, 1.0, 1.0)]
    assert expected_s(trials) == pytest.approx(3.8 + 3 * 1.1)


def test_failed_trials_do_not_shorten_what_is_expected() -> None:
    trials = [failed(0, FailureKind.CRASH)]
    assert expected_s(trials) == expected_s([])


def test_only_a_share_of_long_steps_is_run() -> None:
    quarter = Composition(num_micro_steps=16, num_run=4, num_warm_up=2)
    durations = TrialDurations(composition_of=lambda strategy: quarter)
    assert expected_s([], durations=durations) == 3.0 + 6 * 0.25


def test_what_must_be_compiled_counts_until_a_trial_has_compiled_it() -> None:
    durations = TrialDurations(build_s=60.0)
    assert expected_s([], ON_HOST, durations) == expected_s([], ON_HOST) + 60.0
    assert expected_s([], durations=durations) == expected_s([])
    built = replace(complete(0, 1.0, 1.0), strategy=ON_HOST)
    assert expected_s([built], ON_HOST, durations) == expected_s([built], ON_HOST)


def test_compiled_layers_neither_wait_for_the_hosts_optimizer_nor_build_it() -> None:
    durations = TrialDurations(build_s=60.0)
    compiled = replace(HERE, torch_compile=True)
    assert start_kind(compiled) is StartKind.SLOW
    assert expected_s([], compiled, durations) == expected_s([], compiled)
    ran = replace(complete(0, 1.0, 1.0), strategy=compiled)
    assert expected_s([ran], ON_HOST, durations) == expected_s([ran], ON_HOST) + 60.0


def test_a_slow_start_is_judged_by_all_but_the_first_of_them() -> None:
    first = replace(complete(0, 1.0, 1.0), strategy=ON_HOST, duration_s=100.0)
    second = replace(complete(1, 1.0, 1.0), strategy=ON_HOST, duration_s=10.0)
    assert start_kind(ON_HOST) is StartKind.ON_HOST
    # Its two steps took 2.2 s.
    assert expected_s([first, second], ON_HOST) == pytest.approx(7.8 + 3 * 1.1)
    assert expected_s([first, second]) == pytest.approx(3.0 + 3 * 1.1)
