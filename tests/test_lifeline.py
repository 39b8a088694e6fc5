"""Children of processes that are killed: tracers, measurements and builds end with them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

_TRACES = """
from autotune.knob_values import Attention
from autotune.profile import Variant, profile_of
from autotune.question.workload import load_model_shape
profile_of(load_model_shape("7B"), Variant(attention=Attention.SDPA, element_bytes=2), 64)
"""

_MEASURES = """
from autotune.machine.hardware import detect_hardware
from autotune.doctor.measure import measure_rates
measure_rates(detect_hardware(2))
"""

_BUILDS = """
import os, subprocess, sys
from autotune.lifeline import end_group_with_input
from autotune.worker.extension import _clean_up
lock = open(sys.argv[1], "w")
end_group_with_input(_clean_up)
subprocess.run(["sleep", "600"])
"""

_STARTS_A_BUILD = """
import subprocess, sys, time
from autotune.lifeline import open_input
with open_input() as stdin:
    command = [sys.executable, "-c", sys.argv[1], sys.argv[2]]
    subprocess.Popen(command, stdin=stdin, start_new_session=True).wait()
"""


def _start(code: str, *arguments: str, tmp_path: Path) -> subprocess.Popen[bytes]:
    (tmp_path / "tmp").mkdir()
    own = {
        "TMPDIR": str(tmp_path / "tmp"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions"),
        "DS_ACCELERATOR": "cpu",
    }
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=os.environ | own)


def _wait_until(condition: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come to that")


def _below(owner: subprocess.Popen[bytes], num_processes: int) -> list[psutil.Process]:
    def find() -> list[psutil.Process]:
        found = psutil.Process(owner.pid).children(recursive=True)
        return found if len(found) >= num_processes else []

    below: list[psutil.Process] = _wait_until(find)
    return below


def _wait_for_end(processes: list[psutil.Process]) -> None:
    def lives(process: psutil.Process) -> bool:
        try:
            return bool(process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    _wait_until(lambda: not any(map(lives, processes)))


@pytest.mark.parametrize(
    ("code", "num_processes", "is_stopped"),
    [(_TRACES, 1, False), (_TRACES, 1, True), (_MEASURES, 2, False), (_MEASURES, 2, True)],
    ids=["tracer", "stopped tracer", "measurement", "stopped measurement"],
)
def test_children_of_a_killed_process_end_and_leave_no_temporary_file(
    code: str, num_processes: int, is_stopped: bool, tmp_path: Path
) -> None:
    with _start(code, tmp_path=tmp_path) as owner:
        below = _below(owner, num_processes)
        if is_stopped:
            # Until then Python itself starts, and the kernel knows nothing of the tie.
            _wait_until(lambda: all(process.cpu_times().user > 1.0 for process in below))
            for process in below:
                process.suspend()
        owner.kill()
    _wait_for_end(below)
    assert list((tmp_path / "tmp").iterdir()) == []
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert {path.suffix for path in kept} <= {".json"}


def test_compilers_of_a_killed_build_end_and_its_lock_is_gone(tmp_path: Path) -> None:
    lock = tmp_path / "extensions" / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True)
    with _start(_STARTS_A_BUILD, _BUILDS, str(lock), tmp_path=tmp_path) as owner:
        below = _below(owner, 2)
        assert lock.exists()
        os.kill(owner.pid, signal.SIGKILL)
    _wait_for_end(below)
    assert not lock.exists()
