"""One contract over every runner: the tests' fake, a replay, and the launcher's real processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fake_runner import FakeRunner
from replay import Recorded, ReplayClock, ReplayRunner

from autotune.question.workload import Workload
from autotune.space.strategy import Strategy
from autotune.trials.protocols import Runner
from autotune.trials.trial import (
    FailureKind,
    Incumbent,
    Measurement,
    Outcome,
    TrialSpec,
    TrialState,
)

STRATEGY = Strategy(micro_batch_size=2, zero_stage=1)


def replay() -> ReplayRunner:
    clock = ReplayClock()
    measurement = Measurement(
        tokens_per_second=1e5,
        step_times_s=(0.001, 0.0011, 0.0009),
        losses=(10.0,) * 5,
        peak_allocated_bytes=2**30,
        peak_reserved_bytes=2**30,
        peak_device_bytes=2**30,
    )
    recorded = Recorded(
        strategy=STRATEGY, outcome=Outcome(measurement=measurement, duration_s=0.5)
    )
    return ReplayRunner([recorded], clock=clock, sleep=clock.sleep)


@pytest.fixture(params=["fake", "replay", pytest.param("launcher", marks=pytest.mark.slow)])
def runner(request: pytest.FixtureRequest) -> Runner:
    if request.param == "fake":
        return FakeRunner()
    if request.param == "replay":
        return replay()
    launcher: Runner = request.getfixturevalue("launcher")
    return launcher


def _spec(tiny: Workload, timed_steps: int) -> TrialSpec:
    return TrialSpec(
        workload=tiny,
        strategy=STRATEGY,
        num_ranks=2,
        timed_steps=timed_steps,
        timed_s=1e9,
        relative_half_width=0.0,
    )


def test_a_finished_trial_hands_back_its_measurement(
    runner: Runner, tiny: Workload, tmp_path: Path
) -> None:
    outcome = runner.run(_spec(tiny, 3), folder=tmp_path, timeout_s=60.0)
    assert outcome.state is TrialState.COMPLETE
    assert outcome.failure is None
    measured = outcome.measurement
    assert measured is not None
    assert len(measured.step_times_s) == 3
    assert len(measured.losses) == 4
    assert measured.peak_memory_bytes > 0
    assert measured.tokens_per_second == pytest.approx(tiny.tokens_per_step / measured.step_time_s)
    assert outcome.duration_s >= sum(measured.step_times_s)


def test_events_tell_when_the_engine_is_ready_and_then_of_each_step(
    runner: Runner, tiny: Workload, tmp_path: Path
) -> None:
    events = []
    runner.run(_spec(tiny, 2), folder=tmp_path, timeout_s=60.0, on_event=events.append)
    names = [e["event"] for e in events if e["event"] in ("ready", "step")]
    assert names == ["ready", "step", "step", "step"]
    steps = [event for event in events if event["event"] == "step"]
    assert [step["index"] for step in steps] == [0, 1, 2]
    assert [step["is_timed"] for step in steps] == [False, True, True]
    assert all(step["time_s"] > 0 for step in steps)


def test_steps_end_once_their_mean_is_known_well_enough(
    runner: Runner, tiny: Workload, tmp_path: Path
) -> None:
    spec = replace(_spec(tiny, 5000), relative_half_width=1e6)
    measured = runner.run(spec, folder=tmp_path, timeout_s=60.0).measurement
    assert measured is not None
    assert len(measured.step_times_s) == 2


def test_a_trial_that_cannot_beat_a_rival_ends_as_pruned_and_keeps_what_it_measured(
    runner: Runner, tiny: Workload, tmp_path: Path
) -> None:
    unbeatable = Incumbent(number=7, tokens_per_second=1e12, peak_memory_bytes=0)
    spec = replace(_spec(tiny, 5000), incumbents=(unbeatable,))
    outcome = runner.run(spec, folder=tmp_path, timeout_s=60.0)
    assert outcome.state is TrialState.PRUNED
    assert outcome.failure is None
    assert outcome.reason is not None
    assert "trial 7" in outcome.reason
    assert outcome.measurement is not None
    assert len(outcome.measurement.step_times_s) == 1
    assert outcome.measurement.peak_memory_bytes > 0


def test_a_sentence_stops_the_trial_as_interrupted(
    runner: Runner, tiny: Workload, tmp_path: Path
) -> None:
    seen: list[object] = []
    outcome = runner.run(
        _spec(tiny, 5000),
        folder=tmp_path,
        timeout_s=60.0,
        on_event=seen.append,
        should_stop=lambda: "enough" if seen else None,
    )
    assert outcome.state is TrialState.INTERRUPTED
    assert outcome.failure is not None
    assert (outcome.failure.kind, outcome.failure.message) == (FailureKind.INTERRUPTED, "enough")
    assert outcome.duration_s > 0


def test_a_trial_beyond_its_timeout_is_stopped_as_such(
    runner: Runner, tiny: Workload, tmp_path: Path
) -> None:
    outcome = runner.run(_spec(tiny, 5000), folder=tmp_path, timeout_s=1.0)
    assert outcome.failure is not None
    assert outcome.failure.kind is FailureKind.TIMEOUT
    assert outcome.duration_s >= 1.0


def test_a_stopped_trial_does_not_disturb_the_next(
    runner: Runner, tiny: Workload, tmp_path: Path
) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    runner.run(_spec(tiny, 5000), folder=folders[0], timeout_s=60.0, should_stop=lambda: "at once")
    outcome = runner.run(_spec(tiny, 2), folder=folders[1], timeout_s=60.0)
    assert outcome.state is TrialState.COMPLETE
