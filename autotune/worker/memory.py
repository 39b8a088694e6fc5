"""Peak memory of one rank: the allocator's and the device's, or the resident set on the CPU."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from autotune.machine.hardware import DeviceType

__all__ = ["MemoryMeter", "MemoryPeaks", "held_bytes", "memory_meter"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPeaks:
    """Peaks since the rank started, in bytes."""

    allocated: int
    reserved: int
    device: int
    num_alloc_retries: int
    """Times the allocator emptied its cache to go on, since the rank started."""


class MemoryMeter(Protocol):
    """Watches one rank's memory."""

    def sample(self) -> None:
        """Look now, where peaks are not kept by the allocator or the kernel."""
        ...

    def peaks(self) -> MemoryPeaks:
        """The peaks so far."""
        ...

    def held_on_host(self) -> int:
        """Bytes of the host's memory that this process holds now and did not at the start.

        What is offloaded, and the host's side of the context; 0 where the device is the host.
        """
        ...


class CudaMemoryMeter:
    """Memory of the current CUDA device.

    The allocator keeps its own peaks. What the device has in use is read where `sample` is called;
    the allocator gives nothing back between steps, so the ends of steps show its height.
    """

    def __init__(self) -> None:
        self._device_peak = 0
        self._host_start = held_bytes()

    def sample(self) -> None:
        """Read what is in use on the whole device."""
        free, total = torch.cuda.mem_get_info()
        self._device_peak = max(self._device_peak, total - free)

    def peaks(self) -> MemoryPeaks:
        """From torch's statistics, and the samples."""
        self.sample()
        return MemoryPeaks(
            allocated=torch.cuda.max_memory_allocated(),
            reserved=torch.cuda.max_memory_reserved(),
            device=self._device_peak,
            num_alloc_retries=torch.cuda.memory_stats().get("num_alloc_retries", 0),
        )

    def held_on_host(self) -> int:
        """Growth of what no file stands behind."""
        return max(0, held_bytes() - self._host_start)


class ResidentMemoryMeter:
    """Memory of this process, as Linux accounts it; elsewhere the peak since the process began."""

    def __init__(self) -> None:
        # Linux: writing 5 resets the peak of the resident set (proc(5), clear_refs).
        clear_refs = Path("/proc/self/clear_refs")
        if clear_refs.exists():
            clear_refs.write_text("5")
        self._start = _resident_bytes()

    def sample(self) -> None:
        """The kernel keeps the peak."""

    def peaks(self) -> MemoryPeaks:
        """Growth since the start; the device is the host: its peak is the whole resident set."""
        peak = _peak_resident_bytes()
        growth = max(0, peak - self._start)
        return MemoryPeaks(allocated=growth, reserved=growth, device=peak, num_alloc_retries=0)

    def held_on_host(self) -> int:
        """It is in the peaks already."""
        return 0


def _resident_bytes() -> int:
    import psutil

    return int(psutil.Process(os.getpid()).memory_info().rss)


def held_bytes() -> int:
    """Resident memory of this process that no file stands behind."""
    held = [_of_status(name) for name in ("RssAnon", "RssShmem")]
    return sum(filter(None, held)) if any(held) else _resident_bytes()


def _of_status(name: str) -> int | None:
    """Bytes of a line of /proc/self/status (proc(5)); None where there is none."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


def _peak_resident_bytes() -> int:
    peak = _of_status("VmHWM")
    if peak is not None:
        return peak
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if os.uname().sysname == "Darwin" else peak * 1024


def memory_meter(device_type: DeviceType) -> MemoryMeter:
    """The meter for a device; starts counting now."""
    return CudaMemoryMeter() if device_type is DeviceType.CUDA else ResidentMemoryMeter()
