"""What others do on GPUs: one contract for the real NVML without a GPU, and for one with GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pynvml
import pytest

from autotune.machine import gpu_load
from autotune.machine.gpu_load import GpuLoad, GpuLoadMeter
from autotune.machine.hardware import DeviceType, Hardware
from autotune.machine.load import OtherWork, gpu_load_meter, other_work

GIB = 2**30


class _NVMLError(Exception):
    pass


@dataclass
class _Process:
    pid: int
    usedGpuMemory: int | None
    smUtil: int = 0
    timeStamp: int = 0


@dataclass
class _FakeNvml:
    """Of GPUs with processes; None for a machine without a driver, or of parts of GPUs (MIG)."""

    gpus: list[list[_Process]] | None
    is_mig: bool = False
    NVMLError: type[Exception] = field(default=_NVMLError, repr=False)

    def nvmlInit(self) -> None:
        if self.gpus is None:
            raise _NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus or [])

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}"

    def nvmlDeviceGetProcessUtilization(self, handle: int, since_us: int) -> list[_Process]:
        found = [one for one in (self.gpus or [])[handle] if one.smUtil]
        if self.is_mig or not found:
            raise _NVMLError("Not Found")
        return found

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[_Process]:
        return (self.gpus or [])[handle]


@pytest.fixture
def child() -> Iterator[int]:
    """A process below this one."""
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield sleeper.pid
    sleeper.kill()
    sleeper.wait()


@pytest.fixture(autouse=True)
def _look_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_load, "_INTERVAL_S", 0.0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


OTHER = os.getppid()
"""A process that is not below this one."""


def _idle() -> _FakeNvml:
    return _FakeNvml([[], []])


def _without_driver() -> _FakeNvml:
    return _FakeNvml(None)


def _busy() -> _FakeNvml:
    mine = _Process(os.getpid(), 9 * GIB, 90)
    return _FakeNvml([[mine, _Process(OTHER, 3 * GIB, 40)], [_Process(OTHER, None, 250)]])


def _real() -> Any:
    return pynvml


@pytest.mark.parametrize("nvml", [_real, _without_driver, _idle, _busy])
def test_every_meter_gives_a_share_and_bytes_and_never_raises(nvml: Callable[[], Any]) -> None:
    meter = GpuLoadMeter(nvml=nvml())
    assert meter.of_others() == GpuLoad()
    for _ in range(3):
        meter.look()
    found = meter.of_others()
    # None says that processes are not told apart, as another's GPU in a container.
    assert found is None or (0 <= found.share <= 1 and found.memory_bytes >= 0)


def test_the_real_nvml_has_what_is_asked_of_it() -> None:
    names = [name for name in vars(_FakeNvml) if name.startswith("nvml")]
    assert len(names) == 6
    assert all(callable(getattr(pynvml, name)) for name in names)
    assert issubclass(pynvml.NVMLError, Exception)


def test_others_are_told_from_our_own_processes_and_the_busiest_gpu_counts(child: int) -> None:
    ours = [_Process(os.getpid(), 9 * GIB, 90), _Process(child, 9 * GIB, 80)]
    nvml = _FakeNvml([[*ours, _Process(OTHER, 3 * GIB, 40)], [_Process(OTHER, None, 10)]])
    meter = GpuLoadMeter(nvml=nvml)
    meter.look()
    assert meter.of_others() == GpuLoad(share=0.4, memory_bytes=3 * GIB)
    second = GpuLoadMeter(slice(1, 2), nvml=nvml)
    second.look()
    nvml.gpus = [[], [_Process(os.getpid(), GIB, 50)]]
    second.look()
    assert second.of_others() == GpuLoad(share=0.05, memory_bytes=0)


def test_what_is_below_the_given_root_is_ours(child: int) -> None:
    nvml = _FakeNvml([[_Process(os.getpid(), GIB, 50), _Process(child, 2 * GIB, 20)]])
    meter = GpuLoadMeter(root=child, nvml=nvml)
    meter.look()
    assert meter.of_others() == GpuLoad(share=0.5, memory_bytes=GIB)


def test_a_process_that_has_ended_stays_what_it_was(child: int) -> None:
    nvml = _FakeNvml([[_Process(child, 2 * GIB, 20)]])
    meter = GpuLoadMeter(nvml=nvml)
    meter.look()
    os.kill(child, 9)
    os.waitpid(child, 0)
    meter.look()
    assert meter.of_others() == GpuLoad()


def test_processes_under_foreign_numbers_are_not_told_apart() -> None:
    meter = GpuLoadMeter(nvml=_FakeNvml([[_Process(2**22 + 7, GIB, 80)]]))
    meter.look()
    assert meter.of_others() is None


def test_of_a_part_of_a_gpu_the_memory_is_known_alone() -> None:
    processes = [_Process(os.getpid(), GIB, 80), _Process(OTHER, 2 * GIB, 80)]
    meter = GpuLoadMeter(nvml=_FakeNvml([processes], is_mig=True))
    meter.look()
    assert meter.of_others() == GpuLoad(share=0.0, memory_bytes=2 * GIB)


def test_looks_are_at_least_a_second_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_load, "_INTERVAL_S", 1000.0)
    nvml = _busy()
    meter = GpuLoadMeter(nvml=nvml)
    meter.look()
    nvml.gpus = [[], []]
    meter.look()
    assert meter.of_others() == GpuLoad(share=1.0, memory_bytes=3 * GIB)


def test_invisible_gpus_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    mine = _Process(os.getpid(), GIB, 10)
    nvml = _FakeNvml([[mine, _Process(OTHER, 3 * GIB, 90)], [mine, _Process(OTHER, GIB, 20)]])
    meter = GpuLoadMeter(nvml=nvml)
    meter.look()
    assert meter.of_others() == GpuLoad(share=0.2, memory_bytes=GIB)


@pytest.mark.parametrize(
    ("gpus", "before", "expected"),
    [
        (GpuLoad(share=0.3, memory_bytes=GIB), 0.9, OtherWork(share=0.3, device_bytes=GIB)),
        (GpuLoad(share=0.04), 0.0, OtherWork()),
        (None, 0.6, OtherWork(share=0.6)),
        (None, 0.0, OtherWork()),
    ],
)
def test_the_reading_before_the_first_trial_stands_only_for_what_is_not_told_apart(
    cpu_hardware: Hardware, gpus: GpuLoad | None, before: float, expected: OtherWork
) -> None:
    on_gpu = replace(cpu_hardware, device_type=DeviceType.CUDA)
    assert other_work(on_gpu, cores=0.0, gpus=gpus, gpu_fraction_before=before) == expected


def test_no_gpu_is_watched_for_a_trial_on_the_cpu(cpu_hardware: Hardware) -> None:
    meter = gpu_load_meter(cpu_hardware)
    meter.look()
    assert meter.of_others() == GpuLoad()
