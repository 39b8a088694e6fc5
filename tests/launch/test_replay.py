"""Trials played back from a record."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from statistics import mean, pstdev, stdev

import pytest
from replay import Recorded, ReplayClock, ReplayRunner, read_recorded
from sample_study import WORKLOAD, complete, failed

from autotune.errors import StorageError
from autotune.space.strategy import Strategy
from autotune.trials.trial import FailureKind, Outcome, TrialSpec

FAST = Strategy(micro_batch_size=4)
LARGE = Strategy(micro_batch_size=64)
MEASURED = complete(0, 1000.0, 10.0).measurement
OUT_OF_MEMORY = failed(1, FailureKind.DEVICE_OUT_OF_MEMORY).failure
RECORDED = (
    Recorded(strategy=FAST, outcome=Outcome(measurement=MEASURED, duration_s=6.0)),
    Recorded(strategy=LARGE, outcome=Outcome(failure=OUT_OF_MEMORY, duration_s=3.0)),
)


def run(runner: ReplayRunner, strategy: Strategy, *, composes: bool = False) -> Outcome:
    spec = TrialSpec(
        workload=WORKLOAD,
        strategy=strategy,
        num_ranks=1,
        timed_steps=4,
        timed_s=1e9,
        relative_half_width=0.0,
        composes=composes,
    )
    return runner.run(spec, folder=Path(), timeout_s=300.0)


def make_runner(*, run_to_run: float = 0.01, seed: int = 0) -> tuple[ReplayRunner, ReplayClock]:
    clock = ReplayClock()
    runner = ReplayRunner(
        RECORDED, run_to_run=run_to_run, seed=seed, clock=clock, sleep=clock.sleep
    )
    return runner, clock


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "trials.jsonl"
    refused = {"strategy": {"zero_stage": 3}, "refused": "no"}
    lines = [
        {"strategy": trial.strategy.to_dict(), "outcome": asdict(trial.outcome)}
        for trial in RECORDED
    ]
    file.write_text("\n".join(map(json.dumps, [*lines, refused])))
    found = read_recorded(file)
    assert [trial.strategy for trial in found] == [FAST, LARGE]
    assert found[1].outcome == RECORDED[1].outcome
    assert found[0].outcome.measurement is not None
    assert found[0].outcome.measurement.step_times_s == (1.0, 1.2)


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "trials.jsonl"
    file.write_text("[1]")
    with pytest.raises(StorageError, match="no record of trials"):
        read_recorded(file)


def test_time_passes_on_the_given_clock_alone() -> None:
    runner, clock = make_runner()
    outcome = run(runner, FAST)
    assert clock() == pytest.approx(outcome.duration_s)
    assert outcome.duration_s > 6.0


def test_of_long_steps_a_part_takes_its_part_of_the_time() -> None:
    whole, part = (run(make_runner()[0], FAST, composes=composes) for composes in (False, True))
    assert part.measurement is not None
    share = part.measurement.share_run
    assert share < 1
    # Both take 3.8 s beside their steps.
    assert part.duration_s - 3.8 == pytest.approx(share * (whole.duration_s - 3.8))


def test_speeds_scatter_as_runs_do() -> None:
    runner, _ = make_runner(run_to_run=0.05)
    speeds = [m.tokens_per_second for _ in range(1600) if (m := run(runner, FAST).measurement)]
    logs = [math.log(speed) for speed in speeds]
    # The median of four draws of 1.0 or 1.2 s is 1.0, 1.1 or 1.2 s, by 5, 6 and 5 of 16.
    medians = [math.log(seconds) for seconds in 5 * (1.0,) + 6 * (1.1,) + 5 * (1.2,)]
    assert stdev(logs) == pytest.approx(math.hypot(0.05, pstdev(medians)), rel=0.05)
    assert math.exp(mean(logs)) == pytest.approx(WORKLOAD.tokens_per_step / 1.1, rel=0.02)


def test_the_same_seed_gives_the_same_noise() -> None:
    first, second, other = (run(make_runner(seed=seed)[0], FAST) for seed in (1, 1, 2))
    assert first == second
    assert first != other


def test_what_failed_fails_again() -> None:
    runner, clock = make_runner()
    outcome = run(runner, LARGE)
    assert outcome.failure == OUT_OF_MEMORY
    assert clock() == 3.0


def test_what_was_never_recorded_is_refused() -> None:
    outcome = run(make_runner()[0], Strategy(zero_stage=3))
    assert outcome.failure is not None
    assert outcome.failure.kind is FailureKind.INVALID_CONFIGURATION
