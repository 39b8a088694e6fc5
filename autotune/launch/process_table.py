"""Reads the operating system's process table: which processes carry a mark, which are stopped.

Does not know what they do.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable

import psutil

__all__ = ["MARK", "StoppedProcesses", "kill_marked"]

MARK = "AUTOTUNE_SERVER"
"""The variable by which all processes below one server are told, wherever they have gone."""

_LOOK_S = 0.5
_PATIENCE_S = 2.0
"""A process that stays stopped for so long is not continued soon: a debugger that is attached, or
a shell that moves a job, takes less."""

_GENTLE_ROUNDS = 10
_MAX_ROUNDS = 30
_ROUND_S = 0.03


def kill_marked(mark: str) -> int:
    """Kill every process of this user whose environment has the mark; how many there were.

    For what a server leaves behind that was killed itself: compilers, processes that left their
    session. Each is asked to end first, for a compiler removes its temporary files then. A stopped
    process is killed like any other.
    """
    killed: set[int] = set()
    for number in range(_MAX_ROUNDS):
        found = _marked(mark)
        if not found:
            break
        for process in found:
            with contextlib.suppress(psutil.Error):
                if number >= _GENTLE_ROUNDS:
                    process.kill()
                elif process.pid not in killed:
                    process.terminate()
            killed.add(process.pid)
        time.sleep(_ROUND_S)
    return len(killed)


def _marked(mark: str) -> list[psutil.Process]:
    """Those that live."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and _lives(process.status()):
                found.append(process)
    return found


def _lives(status: str) -> bool:
    return status not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


class StoppedProcesses:
    """Which of a few processes were stopped from outside, and have stayed so for some seconds."""

    def __init__(self) -> None:
        self._looked_at = 0.0
        self._stopped_since: dict[int, float] = {}

    def find(self, pids: Iterable[int]) -> int | None:
        """One of them that is; None where all run, or were looked at just now."""
        now = time.monotonic()
        if now - self._looked_at < _LOOK_S:
            return None
        self._looked_at = now
        since = self._stopped_since
        self._stopped_since = {pid: since.get(pid, now) for pid in pids if _is_stopped(pid)}
        late = (pid for pid, at in self._stopped_since.items() if now - at >= _PATIENCE_S)
        return next(late, None)


def _is_stopped(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    return False
