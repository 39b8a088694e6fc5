"""The rate of a disk, past the cache of the operating system (O_DIRECT)."""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from autotune.machine.hardware import FULL_DISK_BYTES

__all__ = ["disk_bytes_per_s"]

_BLOCK_BYTES = 8 * 2**20
_NUM_THREADS = 8
"""Blocks on their way at once, as DeepSpeed's asynchronous I/O has several."""

_MOST_BYTES = 2**30
_MOST_S = 4.0
"""Longest time for writing, and for reading: what is done by then tells a slow disk's rate."""


def disk_bytes_per_s(folder: Path) -> float:
    """The slower of writing and reading, of at most 1 GiB in a file that is removed again.

    Raises:
        OSError: the folder cannot be written with O_DIRECT, or has too little room.
    """
    free = shutil.disk_usage(folder).free - FULL_DISK_BYTES
    num_blocks = min(_MOST_BYTES, free // 2) // _BLOCK_BYTES
    if num_blocks < _NUM_THREADS:
        raise OSError(f"only {max(0, free) / 2**20:.0f} MiB are free")
    # Without a name: its room is free again, whatever ends this process.
    with tempfile.TemporaryFile(dir=folder) as file:
        descriptor = file.fileno()
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | getattr(os, "O_DIRECT", 0))
        num_written, writing_s = _pass(os.pwritev, descriptor, num_blocks)
        num_read, reading_s = _pass(os.preadv, descriptor, num_written)
    return _BLOCK_BYTES * min(num_written / writing_s, num_read / reading_s)


def _pass(
    transfer: Callable[[int, list[mmap.mmap], int], int], descriptor: int, num_blocks: int
) -> tuple[int, float]:
    """Blocks that were moved before the time was over, from the first on, and their seconds."""
    started = time.perf_counter()

    def of_thread(thread: int) -> int:
        # Memory of whole pages, as O_DIRECT wants it.
        with mmap.mmap(-1, _BLOCK_BYTES) as block:
            moved = 0
            for index in range(thread, num_blocks, _NUM_THREADS):
                if time.perf_counter() - started > _MOST_S:
                    break
                transfer(descriptor, [block], index * _BLOCK_BYTES)
                moved += 1
            return moved

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        moved = list(pool.map(of_thread, range(_NUM_THREADS)))
    return sum(moved), time.perf_counter() - started
