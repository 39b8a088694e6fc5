"""What a finished study teaches a plan: by trials that are off in a way that is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from planned import planned
from sample_study import HARDWARE, LAPTOP, WORKLOAD, complete, summary

from autotune.errors import ConfigError
from autotune.machine.hardware import Hardware
from autotune.plan.calibration import Calibration, learn_from
from autotune.plan.plan import Plan
from autotune.predictor import AnalyticPredictor
from autotune.space.strategy import Strategy
from autotune.space.strategy_table import StrategyTable
from autotune.study.summary import StudySummary
from autotune.trials.trial import Trial

STRATEGIES = [
    Strategy(zero_stage=stage, micro_batch_size=size, checkpoint_interval=interval)
    for stage in (0, 1, 2)
    for size in (2, 4, 8, 16)
    for interval in (0, 1)
]


def measured(number: int, strategy: Strategy, *, slower: float, hardware: Hardware) -> Trial:
    """A trial that took so many times longer than predicted, with a tenth more activations."""
    said = AnalyticPredictor(WORKLOAD, hardware).predict(strategy)
    parts = said.breakdown_bytes
    more = (parts.get("activations", 0) + parts.get("logits", 0)) // 10
    trial = complete(number, said.tokens_per_second / slower, 1.0, strategy=strategy)
    assert trial.measurement is not None
    seen = replace(
        trial.measurement,
        step_times_s=(slower * said.step_time_s,),
        peak_reserved_bytes=said.peak_memory_bytes + more,
    )
    return replace(trial, measurement=seen, prediction=said)


def study(slower: float = 1.25, hardware: Hardware = HARDWARE) -> StudySummary:
    trials = [
        measured(number, strategy, slower=slower, hardware=hardware)
        for number, strategy in enumerate(STRATEGIES)
    ]
    return replace(summary(*trials, hardware=hardware), folder=Path("results/mine"))


@pytest.fixture(scope="module")
def plan() -> Plan:
    """Of another model, on as many of the same devices."""
    return planned("3B", "2xH100-80GB")


def changes(calibration: Calibration) -> tuple[list[float], list[float]]:
    """Of step times and of reserved memory, by strategy."""
    pairs = [(calibration.prior.predict(each), calibration.predict(each)) for each in STRATEGIES]
    times = [new.step_time_s / old.step_time_s for old, new in pairs]
    return times, [new.peak_memory_bytes / old.peak_memory_bytes for old, new in pairs]


def test_what_was_slower_there_is_predicted_slower_for_another_model(plan: Plan) -> None:
    times, memories = changes(learn_from(study(), plan.question))
    assert all(1.1 < change < 1.3 for change in times)
    assert all(1.0 <= change < 1.1 for change in memories)
    assert max(memories) > 1.01


def test_a_study_as_predicted_moves_no_step_time(plan: Plan) -> None:
    times, _ = changes(learn_from(study(slower=1.0), plan.question))
    assert times == pytest.approx([1.0] * len(STRATEGIES), rel=1e-9)


def test_of_another_kind_of_device_memory_alone_is_learned() -> None:
    calibration = learn_from(study(), planned("3B", "2xA100-80GB").question)
    times, memories = changes(calibration)
    assert times == [1.0] * len(STRATEGIES)
    assert max(memories) > 1.01
    assert any(
        "Step times are not corrected, because that study ran on another device kind: H100-80GB"
        in s
        for s in words(calibration)
    )


def test_it_is_said_what_was_learned_from_what_and_how_far_it_moved(plan: Plan) -> None:
    said = words(learn_from(study(), plan.question))
    assert said[0].startswith(
        "Corrected by 24 measured trials of results/mine (1.1B, full, 2 x H100-80GB). Change: "
        "step times +2"
    )
    assert len(said) == 1


def test_the_bounds_stay_as_wide_as_without_the_study(plan: Plan) -> None:
    calibration = learn_from(study(), plan.question)
    for strategy in STRATEGIES:
        old, new = calibration.prior.predict(strategy), calibration.predict(strategy)
        width = old.peak_memory_upper_bytes / old.peak_memory_lower_bytes
        assert new.peak_memory_upper_bytes / new.peak_memory_lower_bytes == pytest.approx(
            width, rel=0.01
        )
        assert new.peak_allocated_bytes < new.peak_memory_bytes


def test_ranks_on_the_cpu_teach_nothing_about_gpus(plan: Plan) -> None:
    with pytest.raises(
        ConfigError, match=r"results/mine: this study ran on 2 x cpu, .* study of GPUs"
    ):
        learn_from(study(hardware=LAPTOP), plan.question)


def test_a_single_trial_teaches_nothing(plan: Plan) -> None:
    whole = study()
    thrashing = [
        replace(trial, measurement=replace(trial.measurement, num_alloc_retries=1))
        for trial in whole.trials[1:]
        if trial.measurement is not None
    ]
    with pytest.raises(ConfigError, match="has 1 measured trials, but at least 2 are needed"):
        learn_from(replace(whole, trials=(whole.trials[0], *thrashing)), plan.question)


def words(calibration: Calibration) -> list[str]:
    return list(calibration.sentences(StrategyTable.of(STRATEGIES)))
