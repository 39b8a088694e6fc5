"""Measurements say what other work there was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sample_study import complete

from autotune.launch import watched_runner
from autotune.launch.watched_runner import WatchedRunner
from autotune.machine.hardware import Hardware
from autotune.question.workload import Workload
from autotune.space.strategy import Strategy
from autotune.trials.trial import Failure, FailureKind, Outcome, TrialSpec


class Hands:
    """A runner that hands out one outcome."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def run(self, spec: TrialSpec, **_: Any) -> Outcome:
        return self._outcome


MEASURED = Outcome(measurement=complete(0, 1000, 10).measurement, duration_s=1.0)
FAILED = Outcome(failure=Failure(kind=FailureKind.CRASH, message="planted"), duration_s=1.0)


@pytest.mark.parametrize(("cores", "share"), [(0.0, 0.0), (1e9, 1.0)])
def test_a_measurement_carries_the_work_of_others(
    cpu_hardware: Hardware,
    tiny: Workload,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cores: float,
    share: float,
) -> None:
    class Meter:
        def cores_of_others(self) -> float:
            return cores

    monkeypatch.setattr(watched_runner, "LoadMeter", Meter)
    spec = TrialSpec(workload=tiny, strategy=Strategy(), num_ranks=2)
    ran = WatchedRunner(Hands(MEASURED), cpu_hardware).run(spec, folder=tmp_path, timeout_s=1.0)
    assert ran.measurement is not None
    assert ran.measurement.disturbance == share
    failed = WatchedRunner(Hands(FAILED), cpu_hardware)
    assert failed.run(spec, folder=tmp_path, timeout_s=1.0) == FAILED
