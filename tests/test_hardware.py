"""What NVML tells becomes the hardware of a question. NVML itself is played: CI has no GPU."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from autotune.errors import ConfigError
from autotune.hardware import DeviceType, detect_hardware, visible_gpus

GIB = 2**30


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    gpus = [("NVIDIA H100 80GB HBM3", "GPU-a", 80), ("NVIDIA A100-SXM4-40GB", "GPU-b", 40)]
    nvml = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: len(gpus),
        nvmlDeviceGetHandleByIndex=lambda index: gpus[index],
        nvmlDeviceGetName=lambda gpu: gpu[0],
        nvmlDeviceGetUUID=lambda gpu: gpu[1],
        nvmlDeviceGetMemoryInfo=lambda gpu: SimpleNamespace(total=gpu[2] * GIB, used=GIB),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("visible", "gib"),
    [
        ("0", [80]),
        ("1,0", [40, 80]),
        ("GPU-b", [40]),
        ("GPU-b, 0", [40, 80]),
        ("", []),
        ("0,7,1", [80]),
        ("-1", []),
    ],
)
def test_cuda_visible_devices_names_gpus_by_index_or_uuid_as_for_cuda(
    monkeypatch: pytest.MonkeyPatch, visible: str, gib: list[int]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.memory_bytes // GIB for gpu in visible_gpus()] == gib


def test_the_smallest_gpu_in_use_sets_the_memory() -> None:
    both, first = detect_hardware(), detect_hardware(1)
    assert (both.num_devices, both.device_memory_bytes) == (2, 40 * GIB)
    assert (first.num_devices, first.device_memory_bytes) == (1, 80 * GIB)


def test_a_known_gpu_brings_its_rates() -> None:
    hardware = detect_hardware(1)
    assert hardware.device_kind == "H100-80GB"
    assert hardware.flops_per_s == 989e12


def test_more_gpus_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match="--devices 3 asked for, but this machine has 2"):
        detect_hardware(3)


def test_a_machine_without_a_visible_gpu_gets_two_cpu_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    hardware = detect_hardware()
    assert (hardware.device_type, hardware.num_devices) == (DeviceType.CPU, 2)
