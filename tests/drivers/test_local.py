from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_runner import FakeRunner

from autotune.drivers.budget import Budget
from autotune.drivers.context import DriverContext
from autotune.drivers.local import LocalDriver
from autotune.errors import LaunchError
from autotune.question.workload import Workload
from autotune.space.strategy import Strategy
from autotune.trials.trial import Failure, FailureKind, Outcome, Trial, TrialSpec, TrialState

CRASH = Failure(kind=FailureKind.CRASH, message="planted")


class Clock:
    """Goes on only while something sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class ScriptedStudy:
    """Hands out trials of growing micro-batch and remembers what it is told."""

    def __init__(self, num_trials: int) -> None:
        self._left = [
            Trial(number=n, strategy=Strategy(micro_batch_size=n + 1), state=TrialState.RUNNING)
            for n in range(num_trials)
        ]
        self.trials: Sequence[Trial] = ()
        self.remaining_s: list[float] = []

    def ask(self, remaining_s: float) -> Trial | None:
        self.remaining_s.append(remaining_s)
        if remaining_s <= 0 or not self._left:
            return None
        self.trials = (*self.trials, self._left.pop(0))
        return self.trials[-1]

    def tell(self, trial: Trial, outcome: Outcome) -> Trial:
        ended = replace(
            trial,
            state=outcome.state,
            measurement=outcome.measurement,
            failure=outcome.failure,
            duration_s=outcome.duration_s,
        )
        self.trials = (*self.trials[:-1], ended)
        return ended


class Diary:
    """A progress that writes down what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.num_refreshes = 0

    def note(self, words: str) -> None:
        self.lines.append(words)

    def trials_changed(self, trials: Sequence[Trial]) -> None:
        self.lines.append(f"{len(trials)} trials")

    def trial_started(self, trial: Trial) -> None:
        self.lines.append(f"started {trial.number}")

    def trial_event(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "ready":
            self.lines.append("ready")

    def trial_ended(self, trial: Trial) -> None:
        self.lines.append(f"ended {trial.number} {trial.state}")

    def refresh(self) -> None:
        self.num_refreshes += 1


class Drive:
    """A local driver over fakes, with steps of a second."""

    def __init__(self, tiny: Workload, folder: Path) -> None:
        self.clock = Clock()
        self.diary = Diary()
        self.interrupted_at_s = float("inf")
        self._tiny = tiny
        self._folder = folder

    def run(
        self,
        study: ScriptedStudy,
        *,
        budget_s: float = 1000.0,
        timeout_s: float = 100.0,
        failures: Mapping[int, Failure] | None = None,
    ) -> None:
        runner = FakeRunner(
            step_time_s=1.0, failures=failures, clock=self.clock, sleep=self.clock.sleep
        )
        LocalDriver(
            runner,
            DriverContext(
                budget=Budget(budget_s, clock=self.clock),
                spec_of=lambda trial: TrialSpec(
                    workload=self._tiny,
                    strategy=trial.strategy,
                    num_ranks=2,
                    timed_steps=4,
                    relative_half_width=0.0,
                ),
                folder_of=lambda number: self._folder / str(number),
                progress=self.diary,
                is_interrupted=lambda: self.clock.now >= self.interrupted_at_s,
                trial_timeout_s=timeout_s,
            ),
        ).run(study)


@pytest.fixture
def drive(tiny: Workload, tmp_path: Path) -> Drive:
    return Drive(tiny, tmp_path)


def test_trials_run_one_after_the_other_until_the_study_has_no_more(drive: Drive) -> None:
    study = ScriptedStudy(3)
    drive.run(study)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 3
    # Five steps of a second each, and the rest of the budget is told at every question.
    assert study.remaining_s == [1000.0, 995.0, 990.0, 985.0]


def test_a_failed_trial_is_told_and_the_next_one_runs(drive: Drive) -> None:
    study = ScriptedStudy(2)
    drive.run(study, failures={1: CRASH})
    assert study.trials[0].failure == CRASH
    assert study.trials[1].state is TrialState.COMPLETE


def test_a_trial_still_running_at_the_end_of_the_budget_is_stopped(drive: Drive) -> None:
    study = ScriptedStudy(3)
    drive.run(study, budget_s=9.0)
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.COMPLETE, TrialState.INTERRUPTED]
    failure = study.trials[1].failure
    assert failure is not None
    assert failure.kind is FailureKind.INTERRUPTED
    assert failure.message == "the budget ended during the trial"
    assert drive.clock.now == 9.0


def test_an_interrupt_stops_the_running_trial_and_asks_for_no_other(drive: Drive) -> None:
    study = ScriptedStudy(3)
    drive.interrupted_at_s = 8.0
    drive.run(study)
    failure = study.trials[1].failure
    assert failure is not None
    assert failure.message == "the user interrupted the search"
    assert len(study.remaining_s) == 2


def test_an_interrupt_before_the_first_trial_asks_for_none(drive: Drive) -> None:
    study = ScriptedStudy(1)
    drive.interrupted_at_s = 0.0
    drive.run(study)
    assert study.remaining_s == []


def test_a_hung_trial_ends_at_its_timeout_and_the_next_one_runs(drive: Drive) -> None:
    study = ScriptedStudy(2)
    drive.run(study, timeout_s=3.0)
    kinds = [trial.failure.kind for trial in study.trials if trial.failure is not None]
    assert kinds == [FailureKind.TIMEOUT, FailureKind.TIMEOUT]


def test_a_runner_that_cannot_start_ends_the_search_and_the_trial_is_told(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(runner: FakeRunner, spec: TrialSpec, **arguments: Any) -> Outcome:
        raise LaunchError("planted")

    monkeypatch.setattr(FakeRunner, "run", run)
    study = ScriptedStudy(2)
    with pytest.raises(LaunchError, match="planted"):
        drive.run(study)
    [failure] = [trial.failure for trial in study.trials]
    assert failure == Failure(kind=FailureKind.LOST_NODE, message="planted")


def test_progress_hears_of_everything_in_its_order(drive: Drive) -> None:
    drive.run(ScriptedStudy(1))
    assert drive.diary.lines == [
        "1 trials",
        "started 0",
        "ready",
        "1 trials",
        "ended 0 complete",
        "1 trials",
    ]
    assert drive.diary.num_refreshes == 5
