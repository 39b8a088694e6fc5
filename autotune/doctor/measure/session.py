"""Starts the ranks of a measurement, follows them, and collects their results.

Imports no torch: this process makes no CUDA context. Does not know how anything is measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autotune.doctor.measure.spec import RankSpec, events_file
from autotune.errors import LaunchError
from autotune.launch.rank_environment import rank_environment
from autotune.launch.scratch_folder import ScratchFolder
from autotune.lifeline import open_input
from autotune.machine.hardware import Hardware
from autotune.machine.rates import Rates

__all__ = ["measure_rates"]

_DEADLINE_S = 55.0
"""What has not been measured by then is left out; the command promises a minute."""

_POLL_S = 0.05


def measure_rates(
    hardware: Hardware,
    *,
    on_rate: Callable[[str, float], None] = lambda rate, value: None,
    on_failure: Callable[[str], None] = lambda words: None,
    deadline_s: float = _DEADLINE_S,
) -> Rates:
    """What this machine attains; a rate that cannot be measured is None.

    Args:
        hardware: this machine, detected; its `nvme_path` is measured where it has one.
        on_rate: told of each rate as it is found.
        on_failure: told in words what could not be measured.
        deadline_s: end after so many seconds, with what is known by then.

    Raises:
        LaunchError: nothing could be measured at all; the message has the reason.
    """
    with ScratchFolder("measure") as folder, open_input() as stdin:
        ranks = [_start(hardware, folder, rank, stdin) for rank in range(hardware.num_devices)]
        try:
            found = _follow(ranks, folder, on_rate, on_failure, deadline_s)
        finally:
            for rank in ranks:
                _end(rank)
        if not found:
            raise LaunchError(f"no rate could be measured: {_last_words(folder)}")
        return Rates(**found)


def _start(hardware: Hardware, folder: Path, rank: int, stdin: int) -> subprocess.Popen[bytes]:
    spec = RankSpec(
        folder=str(folder),
        rank=rank,
        num_ranks=hardware.num_devices,
        device_type=str(hardware.device_type),
        supports_bf16=hardware.supports_bf16,
        nvme_path=hardware.nvme_path,
    )
    with (folder / f"rank{rank}.err").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "autotune.doctor.measure.rank", spec.to_json()],
            stdin=stdin,
            stdout=log,
            stderr=log,
            env=rank_environment(hardware),
            start_new_session=True,
        )


def _follow(
    ranks: list[subprocess.Popen[bytes]],
    folder: Path,
    on_rate: Callable[[str, float], None],
    on_failure: Callable[[str], None],
    deadline_s: float,
) -> dict[str, float]:
    """Take in what is written until all ranks end, one of them fails, or time is over."""
    found: dict[str, float] = {}
    num_seen = 0
    deadline = time.monotonic() + deadline_s
    is_over = False
    while not is_over:
        statuses = [rank.poll() for rank in ranks]
        is_late = time.monotonic() >= deadline
        is_over = is_late or all(s is not None for s in statuses) or any(statuses)
        events = _events(folder)
        for event in events[num_seen:]:
            if "value" in event:
                found[event["rate"]] = event["value"]
                on_rate(event["rate"], event["value"])
            else:
                on_failure(f"{event['rate']}: {event['failure']}")
        num_seen = len(events)
        if not is_over:
            time.sleep(_POLL_S)
    if is_late:
        on_failure(f"some rates were not measured within {deadline_s:.0f} s")
    elif any(statuses):
        on_failure(f"a rank failed: {_last_words(folder)}")
    return found


def _events(folder: Path) -> list[dict[str, Any]]:
    """All whole lines so far."""
    try:
        data = events_file(folder).read_bytes()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def _end(rank: subprocess.Popen[bytes]) -> None:
    if rank.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(rank.pid, signal.SIGKILL)
    rank.wait()


def _last_words(folder: Path) -> str:
    """The last line of the first rank that wrote any."""
    for log in sorted(folder.glob("rank*.err")):
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if lines:
            return lines[-1]
    return "the ranks ended without a message"
