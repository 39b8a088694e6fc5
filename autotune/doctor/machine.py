"""Checks of the machine: GPUs, cores, memory, shared memory, disk, without a CUDA context."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from autotune.doctor.check import Check
from autotune.machine.cpu_precisions import cpu_precisions
from autotune.machine.hardware import DeviceType, Hardware, detect_hardware, host_memory_bytes

__all__ = [
    "detect_or_none",
    "examine_cpu_precisions",
    "examine_machine",
    "has_gpu",
    "nearest_existing",
]

GIB = 2**30

_SHARED_MEMORY = Path("/dev/shm")
_NVIDIA_CONTROL = Path("/dev/nvidiactl")
_MIN_HOST_MEMORY_BYTES = 4 * GIB
_MIN_DISK_BYTES = GIB
_MIN_SHARED_MEMORY_BYTES = GIB


def examine_machine(hardware: Hardware | None, results_folder: Path) -> list[Check]:
    """Devices first; `hardware` is None where it could not be detected."""
    return [
        _gpus(hardware),
        _cpu_cores(),
        _host_memory(),
        _shared_memory(),
        _disk(results_folder),
    ]


def detect_or_none() -> Hardware | None:
    """None where the packages that detection needs are not installed."""
    try:
        return detect_hardware()
    except ImportError:
        return None


def has_gpu(hardware: Hardware | None) -> bool:
    """Whether trials will run on GPUs."""
    return hardware is not None and hardware.device_type is DeviceType.CUDA


def _gpus(hardware: Hardware | None) -> Check:
    name = "GPU"
    if hardware is None:
        return Check.warning(
            name,
            "unknown: nvidia-ml-py or psutil is not installed",
            "type: pip install nvidia-ml-py psutil",
        )
    if has_gpu(hardware):
        gib = hardware.device_memory_bytes / GIB
        return Check.ok(name, f"{hardware}, {gib:.0f} GiB each, driver {_driver_version()}")
    hidden = [
        f"{variable}={os.environ[variable]!r}"
        for variable in ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR")
        if variable in os.environ
    ]
    if _NVIDIA_CONTROL.exists() and not hidden:
        return Check.warning(
            name, "an NVIDIA device exists, but its driver does not answer", "type: nvidia-smi"
        )
    note = f" ({', '.join(hidden)} is set)" if hidden else ""
    return Check.ok(name, f"no GPU{note}; trials use CPU ranks with gloo; try --model tiny")


def _driver_version() -> str:
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            return str(pynvml.nvmlSystemGetDriverVersion())
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        return f"unknown ({error})"


def _cpu_cores() -> Check:
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    num_cores = num_cores or os.cpu_count() or 1
    if num_cores > 1:
        return Check.ok("CPU cores", str(num_cores))
    return Check.warning(
        "CPU cores", "1; two CPU ranks would compete for it", "type: autotune search --devices 1"
    )


def _host_memory() -> Check:
    name = "host memory"
    try:
        import psutil

        total, free = host_memory_bytes(), int(psutil.virtual_memory().available)
    except ImportError:
        return Check.warning(name, "unknown: psutil is not installed", "type: pip install psutil")
    free = min(total, free)
    detail = f"{total / GIB:.1f} GiB, {free / GIB:.1f} GiB free"
    if free >= _MIN_HOST_MEMORY_BYTES:
        return Check.ok(name, detail)
    return Check.warning(
        name,
        f"{detail}; two ranks of the smallest model need {_MIN_HOST_MEMORY_BYTES // GIB} GiB",
        "close other programs, or type: autotune search --model tiny --devices 1",
    )


def _shared_memory() -> Check:
    """NCCL and gloo exchange data between ranks of one host here; Docker gives 64 MiB."""
    name = "shared memory"
    if not _SHARED_MEMORY.is_dir():
        return Check.ok(name, f"{_SHARED_MEMORY} does not exist on this system")
    size = shutil.disk_usage(_SHARED_MEMORY).total
    detail = f"{_SHARED_MEMORY} has {size / GIB:.2f} GiB"
    if size >= _MIN_SHARED_MEMORY_BYTES:
        return Check.ok(name, detail)
    return Check.warning(
        name,
        f"{detail}; ranks that communicate through it may hang or crash",
        "start the container with: docker run --shm-size=8g, or --ipc=host",
    )


def _disk(folder: Path) -> Check:
    """The disk of the nearest existing folder: a study creates its own folder."""
    name = "results folder"
    existing = nearest_existing(folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Check.missing(
            name,
            f"{existing} cannot be written",
            "type: autotune search --out FOLDER, with a writable folder",
        )
    free = shutil.disk_usage(existing).free
    detail = f"{folder}: {free / GIB:.1f} GiB free"
    if free >= _MIN_DISK_BYTES:
        return Check.ok(name, detail)
    return Check.warning(
        name,
        f"{detail}; a long study may fill it with logs",
        "type: autotune search --out FOLDER, on another disk",
    )


def nearest_existing(path: Path) -> Path:
    """The path itself, or the first of its parents that is there."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    return existing


def examine_cpu_precisions() -> Check:
    """What the CPU has instructions for; DeepSpeed takes bf16 always, fp16 where oneDNN has it."""
    found = cpu_precisions()
    bf16 = "bf16" if found.bf16 else "bf16 (slow emulation; CPU searches train in fp32)"
    fp16 = "fp16" if found.fp16 else "no fp16 (DeepSpeed does not support it on this CPU)"
    return Check.ok("CPU precisions", f"fp32, {bf16}, {fp16}")
