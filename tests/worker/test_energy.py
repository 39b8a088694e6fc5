"""Energy: NVML's counter where there is one, and nothing, not zero, elsewhere."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import RunTrial

from autotune.launch.rank_process import RankProcess, measurement_of
from autotune.question.workload import Workload
from autotune.space.strategy import Strategy
from autotune.trials.trial import Measurement, TrialSpec
from autotune.worker.energy import GpuEnergyMeter, NoEnergyMeter, energy_meter


class _NVMLError(Exception):
    pass


class _FakeNvml:
    """Of two GPUs, of which the second counts energy: 250 J with every look."""

    NVMLError = _NVMLError

    def __init__(self) -> None:
        self.millijoules = 5_000_000

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid not in ("GPU-old", "GPU-new"):
            raise _NVMLError("not found")
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if handle == "GPU-old":
            raise _NVMLError("not supported")
        self.millijoules += 250_000
        return self.millijoules


def test_joules_are_the_counters_millijoules() -> None:
    meter = GpuEnergyMeter("GPU-new", _FakeNvml())
    before, after = meter.joules(), meter.joules()
    assert before is not None
    assert after is not None
    assert after - before == 250.0


@pytest.mark.parametrize("uuid", ["GPU-old", "GPU-unknown"])
def test_a_gpu_without_the_counter_has_no_energy(uuid: str) -> None:
    assert GpuEnergyMeter(uuid, _FakeNvml()).joules() is None


def test_the_cpu_has_no_energy() -> None:
    meter = energy_meter(torch.device("cpu"))
    assert isinstance(meter, NoEnergyMeter)
    assert meter.joules() is None


def _measured(tiny: Workload, *energies_j: float | None) -> Measurement:
    ranks = []
    for number, energy_j in enumerate(energies_j):
        counts = dict.fromkeys(
            (
                "peak_allocated_bytes",
                "peak_reserved_bytes",
                "peak_device_bytes",
                "host_memory_bytes",
                "num_alloc_retries",
                "num_parameters",
                "num_trainable_parameters",
                "optimizer_state_bytes",
                "skipped_steps",
            ),
            0,
        )
        times = {
            "step_times_s": [1.0, 1.0, 1.0],
            "losses": [1.0] * 5,
            "setup_time_s": 1.0,
            "share_run": 1.0,
        }
        result = counts | times | {"energy_j": energy_j}
        ranks.append(RankProcess(number=number, folder=Path(), result=result))
    spec = TrialSpec(workload=tiny, strategy=Strategy(), num_ranks=len(ranks))
    return measurement_of(spec, ranks)


def test_energy_of_all_ranks_is_divided_by_the_tokens_of_the_timed_steps(tiny: Workload) -> None:
    tokens = 3 * tiny.tokens_per_step
    assert _measured(tiny, 300.0, 468.0).energy_j_per_token == 768.0 / tokens


def test_one_device_without_a_counter_leaves_energy_out(tiny: Workload) -> None:
    assert _measured(tiny, 300.0, None).energy_j_per_token is None


def test_a_record_from_before_energy_reads_back_without(tiny: Workload) -> None:
    record = asdict(_measured(tiny, 300.0))
    assert Measurement.from_dict(record).energy_j_per_token is not None
    del record["energy_j_per_token"]
    assert Measurement.from_dict(record).energy_j_per_token is None


@pytest.mark.slow
def test_a_trial_on_the_cpu_has_no_energy(run_trial: RunTrial) -> None:
    measured = run_trial().measurement
    assert measured is not None
    assert measured.energy_j_per_token is None
