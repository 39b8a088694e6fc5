"""The load that other work puts on the machine during a trial: on its cores, and on its GPUs.

Does not know what runs here, nor how long.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autotune.machine.gpu_load import GpuLoad, GpuLoadMeter
from autotune.machine.hardware import DeviceType, Hardware, visible_gpus

if TYPE_CHECKING:
    import psutil

__all__ = [
    "LoadMeter",
    "OtherWork",
    "busy_gpu_fraction",
    "disturbance",
    "gpu_load_meter",
    "other_work",
]

_IGNORED = 0.05
"""Less than this of what is needed is what every machine does beside."""

_CORES_OF_A_GPU_RANK = 1.0
"""A rank on a GPU keeps one core at work, with launches."""


@dataclass(frozen=True, slots=True)
class _Times:
    """Seconds of processors at one moment."""

    clock_s: float
    busy_s: float
    """Busy seconds of all processors, for any process; what a hypervisor takes counts too."""
    own_s: float
    """CPU seconds of the root process and all its descendants, including ended ones."""


class LoadMeter:
    """Watches the machine's processors from when it is made.

    Args:
        root: the process that all of our work is below, if it is not this one.
    """

    def __init__(self, root: psutil.Process | None = None) -> None:
        self._root = root
        self._before = _times(root)

    def cores_of_others(self) -> float:
        """How many cores other processes kept busy since then, on average."""
        now = _times(self._root)
        seconds = now.clock_s - self._before.clock_s
        if seconds <= 0:
            return 0.0
        busy_s, own_s = now.busy_s - self._before.busy_s, now.own_s - self._before.own_s
        return max(0.0, (busy_s - own_s) / seconds)


def _times(root: psutil.Process | None) -> _Times:
    import psutil

    total = psutil.cpu_times()
    names = ("user", "nice", "system", "irq", "softirq", "steal")
    busy_s = sum(getattr(total, name, 0.0) for name in names)
    own_s = 0.0
    top = root or psutil.Process()
    for process in (top, *top.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            own_s += sum(process.cpu_times()[:4])
    return _Times(clock_s=time.monotonic(), busy_s=busy_s, own_s=own_s)


def disturbance(hardware: Hardware, cores_of_others: float) -> float:
    """The fraction of the cores that the ranks need which others used; 0 to 1, little is none.

    CPU ranks need all cores, ranks on GPUs one each.
    """
    import psutil

    cores = float(psutil.cpu_count() or 1)
    is_cpu = hardware.device_type is DeviceType.CPU
    needed = cores if is_cpu else min(cores, _CORES_OF_A_GPU_RANK * hardware.devices_per_node)
    fraction = (cores_of_others - (cores - needed)) / needed
    return min(1.0, fraction) if fraction > _IGNORED else 0.0


def busy_gpu_fraction(hardware: Hardware) -> float:
    """How busy other processes keep the busiest visible GPU, while ours have none at work."""
    if hardware.device_type is DeviceType.CPU:
        return 0.0
    share = max((gpu.utilisation for gpu in visible_gpus()), default=0.0)
    return share if share > _IGNORED else 0.0


def gpu_load_meter(
    hardware: Hardware, devices: slice = slice(None), *, root: int | None = None
) -> GpuLoadMeter:
    """A meter of the GPUs that a trial works on; of none where it works on the CPU.

    Args:
        hardware: what a trial has.
        devices: which of the visible GPUs.
        root: the process that all of our work is below; this one if None.
    """
    is_cpu = hardware.device_type is DeviceType.CPU
    return GpuLoadMeter(slice(0) if is_cpu else devices, root=root)


@dataclass(frozen=True, kw_only=True, slots=True)
class OtherWork:
    """What the work of others took of what a trial needs."""

    share: float = 0.0
    """Of its cores, or of the time of a GPU; the greater of both, 0 to 1."""
    device_bytes: int = 0
    """Of one device's memory, at most."""


def other_work(
    hardware: Hardware, *, cores: float, gpus: GpuLoad | None, gpu_fraction_before: float
) -> OtherWork:
    """The load on cores and on GPUs as one.

    Args:
        hardware: what a trial has.
        cores: that others kept busy.
        gpus: the load on them; None where NVML does not tell processes apart.
        gpu_fraction_before: how busy a GPU was before any trial; for what is not told
            apart.
    """
    busy = gpu_fraction_before if gpus is None else gpus.share
    return OtherWork(
        share=max(busy if busy > _IGNORED else 0.0, disturbance(hardware, cores)),
        device_bytes=0 if gpus is None else gpus.memory_bytes,
    )
