"""Events that a rank writes while it runs: lines in a file, and its phase.

Files, because what is written outlives a process that is killed.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from autotune.trials.trial import Phase

__all__ = ["RankLog"]


class RankLog:
    """The events of one rank, as JSON lines in its trial's folder."""

    def __init__(self, folder: Path, rank: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        self._events = os.open(folder / f"rank{rank}.jsonl", flags, 0o644)
        self._phase_file = os.open(folder / f"rank{rank}.phase", flags, 0o644)
        self.phase = Phase.INIT
        self.enter(Phase.INIT)

    def enter(self, phase: Phase) -> None:
        """Mark what comes next, so that a kill from outside finds it written down."""
        self.phase = phase
        os.pwrite(self._phase_file, f"{phase:<10}".encode(), 0)

    def write(self, event: str, **fields: Any) -> None:
        """One event; written at once and whole."""
        line = json.dumps({"event": event, "at": time.time(), **fields}) + "\n"
        os.write(self._events, line.encode())
