"""A whole search, from study to record, over trials played back on a clock of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from planted_truth import LIMIT_BYTES, PLAN, outcome
from replay import Recorded, ReplayClock, ReplayRunner

from autotune.drivers.budget import Budget
from autotune.drivers.context import DriverContext
from autotune.drivers.local import LocalDriver
from autotune.learner import CalibratedPredictor
from autotune.predictor import AnalyticPredictor
from autotune.pruners import DominancePruner, PredictedMemoryPruner
from autotune.samplers import PredictedSampler
from autotune.study.pareto import pareto_front
from autotune.study.record import TrialRecord
from autotune.study.study import Study
from autotune.trials.trial import Trial, TrialSpec

RECORDED = [Recorded(strategy=c.strategy, outcome=outcome(c.strategy)) for c in PLAN.candidates]
FASTEST = max(
    m.tokens_per_second
    for trial in RECORDED
    if (m := trial.outcome.measurement) and m.peak_device_bytes <= LIMIT_BYTES
)


class Silence:
    """A progress that shows nothing."""

    def trials_changed(self, trials: Sequence[Trial]) -> None: ...
    def trial_started(self, trial: Trial) -> None: ...
    def trial_event(self, event: Mapping[str, Any]) -> None: ...
    def trial_ended(self, trial: Trial) -> None: ...
    def refresh(self) -> None: ...


def spec_of(trial: Trial) -> TrialSpec:
    return TrialSpec(workload=PLAN.workload, strategy=trial.strategy, num_ranks=1)


def search(record: TrialRecord, clock: ReplayClock, budget_s: float, min_gain: float) -> Study:
    prior = AnalyticPredictor(PLAN.workload, PLAN.hardware)
    table, limits = PLAN.candidates.table, PLAN.question.limits
    study = Study(
        record,
        sampler=PredictedSampler(table, prior, limits=limits, min_gain=min_gain),
        predictor=prior,
        learn=CalibratedPredictor(prior).learn,
        pruners=[
            PredictedMemoryPruner(LIMIT_BYTES, host_memory_bytes=PLAN.hardware.host_memory_bytes),
            DominancePruner(),
        ],
    )
    driver = LocalDriver(
        ReplayRunner(RECORDED, clock=clock, sleep=clock.sleep),
        DriverContext(
            budget=Budget(budget_s, started=clock(), clock=clock),
            spec_of=spec_of,
            folder_of=lambda number: Path(),
            progress=Silence(),
            is_interrupted=lambda: False,
            trial_timeout_s=300.0,
        ),
    )
    driver.run(study)
    return study


@pytest.fixture
def record(tmp_path: Path) -> TrialRecord:
    return TrialRecord(
        f"sqlite:///{tmp_path / 'study.db'}",
        "study",
        owner="here",
        choices={"micro_batch_size": tuple(range(1, 129))},
        memory_limit_bytes=LIMIT_BYTES,
    )


def test_two_minutes_of_a_gpu_find_the_fastest_and_end_in_time(record: TrialRecord) -> None:
    clock = ReplayClock()
    study = search(record, clock, 120.0, min_gain=0.0)
    # A trial that is still running is stopped after the step that it is at.
    assert 100.0 < clock() < 125.0
    best = pareto_front(study.trials)[0].measurement
    assert best is not None
    assert best.tokens_per_second > 0.97 * FASTEST
    assert not any(trial.failure for trial in study.trials[:-1])


def test_what_nothing_is_likely_to_improve_ends_before_the_budget(record: TrialRecord) -> None:
    clock = ReplayClock()
    study = search(record, clock, 1800.0, min_gain=0.01)
    assert clock() < 900.0
    assert study.end_reason is not None
    assert "--min-gain" in study.end_reason


def test_a_second_sitting_goes_on_where_the_first_stopped(record: TrialRecord) -> None:
    clock = ReplayClock()
    first = search(record, clock, 60.0, min_gain=0.0)
    second = search(record, clock, 60.0, min_gain=0.0)
    assert second.trials[: len(first.trials)] == first.trials
    assert len({trial.strategy for trial in second.trials}) == len(second.trials)
