"""The real warm server without the libraries: for tests of who ends whom.

Run in place of `python -m autotune.worker.server`. Importing takes QUICK_SERVER_LOAD_S seconds; a
rank does what its environment says in QUICK_RANK: it sleeps, or comes to a result and then sleeps,
or starts a process that leaves its session.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

from autotune.worker import server

RESULT = {
    "event": "result",
    "step_times_s": [1.0, 1.0],
    "losses": [10.0, 10.0],
    "setup_time_s": 0.1,
    "peak_allocated_bytes": 1,
    "peak_reserved_bytes": 1,
    "peak_device_bytes": 1,
    "host_memory_bytes": 1,
    "num_alloc_retries": 0,
    "num_parameters": 1,
    "num_trainable_parameters": 1,
    "optimizer_state_bytes": 1,
    "share_run": 1.0,
    "skipped_steps": 0,
    "energy_j": None,
    "defeat": None,
}


def run_rank(spec_file: Path, folder: Path, rank: int) -> int:
    """In place of a training."""
    events = folder / f"rank{rank}.jsonl"
    events.write_text(json.dumps({"event": "started"}) + "\n")
    task = os.environ.get("QUICK_RANK", "sleep")
    if task == "flee":
        subprocess.Popen(["sleep", "600"], start_new_session=True)
    if task == "result":
        with events.open("a") as file:
            file.write(json.dumps(RESULT) + "\n")
    time.sleep(600)
    return 0


def main() -> None:
    """As `python -m autotune.worker.server` is started: after two arguments of Python's own."""
    sys.argv[1:3] = []
    stub = ModuleType("autotune.worker.rank")
    stub.run_rank = run_rank  # type: ignore[attr-defined]
    sys.modules["autotune.worker.rank"] = stub

    def preload(model_type: str, *, with_optional: bool = True) -> None:
        time.sleep(float(os.environ.get("QUICK_SERVER_LOAD_S", "0")))

    server.preload = preload
    server._can_fork_for_gpu = lambda: True
    server.main()


if __name__ == "__main__":
    main()
