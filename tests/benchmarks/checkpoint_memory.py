"""Memory of one rank's device and host while DeepSpeed saves a checkpoint.

Knows an engine and Linux's accounting; knows neither strategies nor predictions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from autotune.worker.memory import ResidentMemoryMeter, held_bytes

Sizes = dict[str, int]
_LOOK_EVERY_S = 0.005


class HeldMemory:
    """Of this process and its device, from now on.

    Args:
        device: of this rank.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._start = held_bytes()

    def held(self) -> int:
        """Bytes of the host that no file stands behind, beyond those at the start."""
        return held_bytes() - self._start

    def peaks(self) -> Sizes:
        """Of the device since the last reset, and what the host holds."""
        sizes = {"host": self.held()}
        if self._is_cuda:
            sizes["reserved"] = torch.cuda.max_memory_reserved()
            sizes["allocated"] = torch.cuda.max_memory_allocated()
        return sizes

    def during(self, work: Callable[[], Any]) -> Sizes:
        """What some work took at most: of the host, beyond what it held before, of the device."""
        resident = ResidentMemoryMeter()
        before, most, is_done = self.held(), [0], threading.Event()

        def watch() -> None:
            while not is_done.wait(_LOOK_EVERY_S):
                most[0] = max(most[0], self.held())

        if self._is_cuda:
            torch.cuda.reset_peak_memory_stats()
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            kept = work()
            most[0] = max(most[0], self.held())
            del kept
        finally:
            is_done.set()
            watcher.join()
        return self.peaks() | {
            "host": most[0],
            "host added": most[0] - before,
            # The kernel misses nothing, and counts mapped files too.
            "resident added": resident.peaks().allocated,
        }


def save_peaks(engine: Any, memory: HeldMemory, folder: Path) -> dict[str, Sizes]:
    """While a checkpoint is saved, twice, and while 16-bit weights are gathered, under ZeRO-3."""
    found = {
        words: memory.during(lambda: engine.save_checkpoint(str(folder)))
        for words in ("saved", "saved again")
    }
    if engine.zero_optimization_partition_weights():
        gather = engine._zero3_consolidated_16bit_state_dict
        found["gathered 16-bit weights"] = memory.during(gather)
    return found
