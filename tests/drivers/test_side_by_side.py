from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_runner import FakeRunner
from test_local import Diary, ScriptedStudy

from autotune.drivers.budget import Budget
from autotune.drivers.context import DriverContext
from autotune.drivers.side_by_side import SideBySideDriver
from autotune.errors import LaunchError
from autotune.knob_values import Offload
from autotune.question.workload import Workload
from autotune.trials.trial import FailureKind, Outcome, Trial, TrialSpec, TrialState


class Floor:
    """Where trials run, and which others ran beside each of them."""

    def __init__(self) -> None:
        self.beside: dict[int, set[int]] = {}
        self._running: set[int] = set()
        self._lock = threading.Lock()

    def enter(self, number: int) -> None:
        with self._lock:
            self._running.add(number)
            for other in self._running:
                self.beside.setdefault(other, set()).update(self._running - {other})

    def leave(self, number: int) -> None:
        with self._lock:
            self._running.discard(number)


class Counted:
    """A runner on a floor with others; a trial's seed is its number."""

    def __init__(self, floor: Floor, step_time_s: float) -> None:
        self._floor = floor
        self._runner = FakeRunner(step_time_s=step_time_s)

    def run(self, spec: TrialSpec, **arguments: Any) -> Outcome:
        self._floor.enter(spec.seed)
        try:
            return self._runner.run(spec, **arguments)
        finally:
            self._floor.leave(spec.seed)


class Breaking:
    """A runner that cannot start anything."""

    def run(self, spec: TrialSpec, **arguments: Any) -> Outcome:
        raise LaunchError("planted")


class ManyStudy(ScriptedStudy):
    """Can be told of trials in any order; some of them work in the host's memory."""

    def __init__(self, num_trials: int, *, on_host: Sequence[int] = ()) -> None:
        super().__init__(num_trials)
        self._left = [
            replace(t, strategy=replace(t.strategy, zero_stage=1, offload_optimizer=Offload.CPU))
            if t.number in on_host
            else t
            for t in self._left
        ]
        self.thread = threading.current_thread()

    def ask(self, remaining_s: float) -> Trial | None:
        assert threading.current_thread() is self.thread
        return super().ask(remaining_s)

    def tell(self, trial: Trial, outcome: Outcome) -> Trial:
        assert threading.current_thread() is self.thread
        ended = replace(
            trial,
            state=outcome.state,
            measurement=outcome.measurement,
            failure=outcome.failure,
            duration_s=outcome.duration_s,
        )
        self.trials = tuple(ended if t.number == trial.number else t for t in self.trials)
        return ended


Drive = Callable[..., tuple[dict[int, set[int]], Diary]]


@pytest.fixture
def drive(tiny: Workload, tmp_path: Path) -> Drive:
    def run(
        study: ManyStudy,
        *,
        budget_s: float = 60.0,
        step_time_s: float = 0.02,
        is_interrupted: Callable[[], bool] = lambda: False,
        runners: Sequence[Any] | None = None,
    ) -> tuple[dict[int, set[int]], Diary]:
        floor = Floor()
        diary = Diary()
        SideBySideDriver(
            runners or [Counted(floor, step_time_s) for _ in range(2)],
            DriverContext(
                budget=Budget(budget_s),
                spec_of=lambda trial: TrialSpec(
                    workload=tiny,
                    strategy=trial.strategy,
                    num_ranks=1,
                    seed=trial.number,
                    timed_steps=4,
                    relative_half_width=0.0,
                ),
                folder_of=lambda number: tmp_path,
                progress=diary,
                is_interrupted=is_interrupted,
                trial_timeout_s=30.0,
            ),
        ).run(study)
        return floor.beside, diary

    return run


def test_as_many_trials_run_at_a_time_as_there_are_runners(drive: Drive) -> None:
    study = ManyStudy(4)
    beside, _ = drive(study)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 4
    assert beside[0] >= {1}
    assert all(beside.values())


def test_a_trial_that_works_in_the_hosts_memory_runs_alone_and_that_is_said(drive: Drive) -> None:
    study = ManyStudy(5, on_host=(2,))
    beside, diary = drive(study)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 5
    assert beside[2] == set()
    assert beside[0] == {1}
    assert any(line.startswith("trial 2 runs alone") for line in diary.lines)


def test_trials_still_running_at_the_end_of_the_budget_are_stopped(drive: Drive) -> None:
    study = ManyStudy(9)
    began = time.monotonic()
    drive(study, budget_s=0.5, step_time_s=0.2)
    assert time.monotonic() - began < 5
    messages = {trial.failure.message for trial in study.trials if trial.failure is not None}
    assert messages == {"the budget ended during the trial"}
    assert TrialState.RUNNING not in {trial.state for trial in study.trials}


def test_an_interrupt_stops_all_that_run_and_what_waits_for_them(drive: Drive) -> None:
    study = ManyStudy(9, on_host=(1,))
    began = time.monotonic()
    drive(study, step_time_s=0.2, is_interrupted=lambda: time.monotonic() - began > 0.3)
    failures = [trial.failure for trial in study.trials]
    assert len(failures) == 2
    for failure in failures:
        assert failure is not None
        assert failure.message == "the user interrupted the search"


def test_a_runner_that_cannot_start_ends_the_search_and_every_trial_is_told(
    drive: Drive,
) -> None:
    study = ManyStudy(3)
    with pytest.raises(LaunchError, match="planted"):
        drive(study, runners=[Breaking(), FakeRunner(step_time_s=0.01)])
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.FAILED, TrialState.INTERRUPTED]
    kinds = [trial.failure.kind for trial in study.trials if trial.failure is not None]
    assert kinds == [FailureKind.LOST_NODE, FailureKind.INTERRUPTED]


def test_progress_hears_of_every_start_and_end(drive: Drive) -> None:
    _, diary = drive(ManyStudy(3))
    for number in range(3):
        assert f"started {number}" in diary.lines
        assert f"ended {number} complete" in diary.lines
    assert diary.num_refreshes > 0


def test_a_study_without_trials_ends_at_once(drive: Drive) -> None:
    beside, _ = drive(ManyStudy(0))
    assert beside == {}
