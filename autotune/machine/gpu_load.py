"""The load that processes of others put on GPUs during a trial: their kernels, and their memory.

By NVML, which names processes, so that a trial's own ranks are told from others while they run.
Does not know trials.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from autotune.machine.hardware import visible_handles

__all__ = ["GpuLoad", "GpuLoadMeter"]

_INTERVAL_S = 1.0
"""A look at the GPUs asks the driver about each process; NVML's samples cover the last second."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuLoad:
    """What processes of others did on the GPU on which they did most."""

    share: float = 0.0
    """Of the time in which their kernels ran, 0 to 1, on average."""
    memory_bytes: int = 0
    """What they held at most."""


class GpuLoadMeter:
    """Watches some of the visible GPUs from when it is made; `look` is to be called often.

    Args:
        devices: which of the visible GPUs.
        root: the process that all of our work is below; this one if None.
        nvml: the module `pynvml`, or one in its place.
    """

    def __init__(
        self, devices: slice = slice(None), *, root: int | None = None, nvml: Any = None
    ) -> None:
        import pynvml

        self._nvml = nvml or pynvml
        self._root = os.getpid() if root is None else root
        self._handles = _handles(self._nvml, devices)
        self._busy = [0.0] * len(self._handles)
        self._held = [0] * len(self._handles)
        self._num_looks = 0
        self._looked_at = 0.0
        self._is_ours: dict[int, bool] = {}

    def look(self) -> None:
        """Note what runs now, if the last look is long enough ago."""
        now = time.monotonic()
        if not self._handles or now - self._looked_at < _INTERVAL_S:
            return
        self._looked_at = now
        self._num_looks += 1
        for place, handle in enumerate(self._handles):
            busy, held = _shares(self._nvml, handle), _bytes(self._nvml, handle)
            for pid in busy.keys() | held.keys():
                if pid not in self._is_ours:
                    self._is_ours[pid] = _is_below(pid, self._root)
            others = [pid for pid, is_ours in self._is_ours.items() if not is_ours]
            self._busy[place] += min(1.0, sum(busy.get(pid, 0.0) for pid in others))
            self._held[place] = max(self._held[place], sum(held.get(pid, 0) for pid in others))

    def of_others(self) -> GpuLoad | None:
        """What others did since it was made.

        None where NVML shows processes under other numbers than this process sees, as in a
        container: none that it has shown is ours, though ours have run.
        """
        if not self._num_looks:
            return GpuLoad()
        if self._is_ours and not any(self._is_ours.values()):
            return None
        return GpuLoad(share=max(self._busy) / self._num_looks, memory_bytes=max(self._held))


def _handles(nvml: Any, devices: slice) -> list[Any]:
    """NVML's handles; empty where there is no driver."""
    try:
        # Stays initialised: a look costs less then.
        nvml.nvmlInit()
        return visible_handles(nvml)[devices]
    except nvml.NVMLError:
        return []


def _shares(nvml: Any, handle: Any) -> dict[int, float]:
    """Of each process, the share of the last second in which its kernels ran.

    Empty where nothing ran, and where the driver does not count it, as of a part of a GPU (MIG).
    """
    since_us = int((time.time() - _INTERVAL_S) * 1e6)
    try:
        samples = nvml.nvmlDeviceGetProcessUtilization(handle, since_us)
    except nvml.NVMLError:
        return {}
    shares: dict[int, float] = {}
    for sample in samples:
        pid = int(sample.pid)
        shares[pid] = max(shares.get(pid, 0.0), min(100, int(sample.smUtil)) / 100)
    return shares


def _bytes(nvml: Any, handle: Any) -> dict[int, int]:
    """Of each process with a context on a GPU, the memory that it holds; 0 where it is unknown."""
    try:
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError:
        return {}
    return {int(one.pid): int(one.usedGpuMemory or 0) for one in processes}


def _is_below(pid: int, root: int) -> bool:
    """Whether a process is `root` or descends from it; False where there is none."""
    import psutil

    try:
        process = psutil.Process(pid)
        return root in (pid, *(parent.pid for parent in process.parents()))
    except psutil.Error:
        return False
