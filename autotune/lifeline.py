"""Ends a process when the process that started it ends, however that happens.

Two kinds: a signal from the kernel, which needs nothing from either process, and an input that
closes, which leaves time to clean up. Does not know what the processes do.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = [
    "adopt_orphans",
    "end_group_with_input",
    "end_with_parent",
    "open_input",
    "wake_with_parent",
]

_PR_SET_PDEATHSIG = 1
"""`prctl` of Linux: the signal that this process gets when the thread that started it ends."""
_PR_SET_CHILD_SUBREAPER = 36


def end_with_parent(parent: int) -> None:
    """Be killed when the thread that started this process ends; at once where it has ended.

    Args:
        parent: its process id.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # It ended before the kernel was asked, and so nothing will come.
        os._exit(1)


def wake_with_parent() -> None:
    """Be continued when the thread that started this process ends, in case it is stopped.

    For a process that sees the end of its parent in another way, and cleans up then.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)


def adopt_orphans() -> None:
    """Become the parent of every process below this one whose own parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


@contextmanager
def open_input() -> Iterator[int]:
    """A standard input for child processes that stays open for as long as this process lives."""
    reader, writer = os.pipe()
    try:
        yield reader
    finally:
        os.close(reader)
        os.close(writer)


def end_group_with_input(clean_up: Callable[[], object]) -> None:
    """Kill this process and its group when standard input closes, which `open_input` made.

    Its group is its own: it was started with a session of its own.

    Args:
        clean_up: called before.
    """
    wake_with_parent()

    def wait() -> None:
        try:
            while os.read(0, 4096):
                pass
            clean_up()
        finally:
            os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def _prctl(option: int, value: int) -> None:
    """Ask the Linux kernel for a property of this process; elsewhere nothing happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
