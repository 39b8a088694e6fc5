"""What NVML tells becomes the hardware of a question. NVML itself is played: CI has no GPU."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from autotune.errors import ConfigError
from autotune.machine.hardware import (
    DEVICE_KINDS,
    DeviceType,
    detect_hardware,
    shared_out,
    visible_gpus,
    with_nvme,
)

GIB = 2**30


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    gpus = [
        ("NVIDIA H100 80GB HBM3", "GPU-a", 80, (9, 0)),
        ("NVIDIA A100-SXM4-40GB", "GPU-b", 40, (8, 0)),
        ("Tesla T4", "GPU-c", 16, (7, 5)),
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    nvml = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: len(gpus),
        nvmlDeviceGetHandleByIndex=lambda index: gpus[index],
        nvmlDeviceGetName=lambda gpu: gpu[0],
        nvmlDeviceGetUUID=lambda gpu: gpu[1],
        nvmlDeviceGetCudaComputeCapability=lambda gpu: gpu[3],
        nvmlDeviceGetUtilizationRates=lambda gpu: SimpleNamespace(gpu=gpu[2] // 2, memory=0),
        nvmlDeviceGetMemoryInfo=lambda gpu: SimpleNamespace(total=gpu[2] * GIB, used=GIB),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)


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


@pytest.mark.parametrize(
    ("visible", "bf16", "tf32", "fp8"),
    [
        ("0", True, True, True),
        ("1", True, True, False),
        ("2", False, False, False),
        ("0,1", True, True, False),
    ],
)
def test_what_a_gpu_computes_with_follows_from_its_compute_capability(
    monkeypatch: pytest.MonkeyPatch, visible: str, bf16: bool, tf32: bool, fp8: bool
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    hardware = detect_hardware()
    found = (hardware.supports_bf16, hardware.supports_tf32, hardware.supports_fp8)
    assert found == (bf16, tf32, fp8)


@pytest.mark.parametrize("name", ["B200", "H200", "H100-80GB", "L40S", "L4", "RTX4090", "RTX5090"])
def test_hopper_ada_and_later_have_fp8(name: str) -> None:
    assert DEVICE_KINDS[name].supports_fp8


@pytest.mark.parametrize("name", ["A100-80GB", "A100-40GB", "RTX3090"])
def test_ampere_has_tf32_and_no_fp8(name: str) -> None:
    kind = DEVICE_KINDS[name]
    assert (kind.supports_bf16, kind.supports_tf32, kind.supports_fp8) == (True, True, False)


def test_more_gpus_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match="--devices 3: this machine has 2"):
        detect_hardware(3)


def test_a_machine_without_a_visible_gpu_gets_two_cpu_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    hardware = detect_hardware()
    assert (hardware.device_type, hardware.num_devices) == (DeviceType.CPU, 2)


def test_more_cpu_ranks_than_the_cores_carry_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert detect_hardware(8).num_devices == 8
    with pytest.raises(ConfigError, match=r"--devices 1024: .* at most 8 CPU ranks"):
        detect_hardware(1024)


def test_an_nvme_path_is_probed_and_left_empty(tmp_path: Path) -> None:
    hardware = with_nvme(detect_hardware(), tmp_path)
    assert hardware.nvme_path == str(tmp_path.resolve())
    assert hardware.nvme_free_bytes > 0
    assert list(tmp_path.iterdir()) == []


def test_an_nvme_path_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(ConfigError, match="--nvme-path /proc: not writable"):
        with_nvme(detect_hardware(), Path("/proc"))


def test_devices_are_shared_out_among_trials_and_the_host_is_not() -> None:
    whole = replace(detect_hardware(), num_devices=4)
    part, num_places = shared_out(whole, 2)
    assert (part.num_devices, num_places) == (2, 2)
    assert part.device_memory_bytes == whole.device_memory_bytes
    assert part.host_memory_bytes == whole.host_memory_bytes


@pytest.mark.parametrize("num_devices", [0, 3, 8])
def test_devices_that_cannot_be_shared_out_are_refused_by_the_flags_name(num_devices: int) -> None:
    with pytest.raises(ConfigError, match=r"--devices-per-trial .* does not divide 4 devices"):
        shared_out(replace(detect_hardware(), num_devices=4), num_devices)
