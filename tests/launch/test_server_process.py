"""Servers killed and stopped by real signals: nothing of them is left, and another comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from autotune.errors import LaunchError
from autotune.launch import launcher as launcher_module
from autotune.launch import process_table, server_process
from autotune.launch.launcher import Launcher
from autotune.launch.server_process import ServerProcess
from autotune.machine.hardware import Hardware
from autotune.question.workload import Workload
from autotune.space.strategy import Strategy
from autotune.trials.trial import FailureKind, TrialSpec

PYTHON = sys.executable
QUICK_SERVER = Path(__file__).parent / "quick_server.py"


@pytest.fixture(autouse=True)
def executable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Starts the quick server, whatever module it is told."""
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nexec {PYTHON} {QUICK_SERVER} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setattr(server_process.sys, "executable", str(script))
    monkeypatch.setattr(process_table, "_PATIENCE_S", 0.3)
    monkeypatch.setattr(process_table, "_LOOK_S", 0.05)
    return script


def _server(folder: Path, **environment: str) -> ServerProcess:
    return ServerProcess(
        model_type="llama", environment=os.environ | environment, log=folder / "server.log"
    )


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    server = _server(tmp_path)
    yield server
    server.close()


def _pid(server: ServerProcess) -> int:
    assert server._process is not None
    return server._process.pid


def _fork(server: ServerProcess, folder: Path, **environment: str) -> int:
    pid = server.fork(rank=0, spec=folder / "trial.json", folder=folder, env=environment)
    assert pid is not None
    return pid


def _wait_until(condition: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not come to that")


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _signal_once(server: ServerProcess, number: int) -> threading.Thread:
    """Sends the signal to the first process that imports."""

    def send() -> None:
        _wait_until(lambda: server._process is not None)
        time.sleep(0.3)
        os.kill(_pid(server), number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_a_server_that_a_signal_ends_or_stops_while_it_imports_is_started_again(
    tmp_path: Path, number: int
) -> None:
    server = _server(tmp_path, QUICK_SERVER_LOAD_S="1")
    sender = _signal_once(server, number)
    assert server.start() is not None
    sender.join()
    assert server.is_alive
    server.close()


def test_a_server_that_is_killed_each_time_is_given_up_and_how_it_ended_is_said(
    tmp_path: Path, executable: Path
) -> None:
    executable.write_text(f"#!/bin/sh\necho x >> {tmp_path}/starts\nkill -9 $$\n")
    with pytest.raises(LaunchError, match=r"was killed \(SIGKILL\); see .*server.log"):
        _server(tmp_path).start()
    assert len((tmp_path / "starts").read_text().split()) == 5


def test_a_server_that_ends_by_itself_is_not_started_again(
    tmp_path: Path, executable: Path
) -> None:
    executable.write_text(f"#!/bin/sh\necho x >> {tmp_path}/starts\nexit 3\n")
    with pytest.raises(LaunchError, match="ended with status 3"):
        _server(tmp_path).start()
    assert len((tmp_path / "starts").read_text().split()) == 1


def test_a_sentence_ends_the_wait_for_a_server_that_imports(tmp_path: Path) -> None:
    server = _server(tmp_path, QUICK_SERVER_LOAD_S="600")
    assert server.start(lambda: "enough") is None
    pid = _pid(server)
    server.close()
    assert not _lives(pid)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_with_a_lost_server_goes_what_its_ranks_started_in_sessions_of_their_own(
    server: ServerProcess, tmp_path: Path, number: int
) -> None:
    server.start()
    rank = _fork(server, tmp_path, QUICK_RANK="flee")
    fled = _wait_until(lambda: psutil.Process(rank).children())[0].pid
    os.kill(_pid(server), number)
    with pytest.raises(LaunchError):
        _wait_until(lambda: server.exits(0.05) or None)
    assert not server.is_alive
    _wait_until(lambda: not _lives(rank) and not _lives(fled))
    assert server.start() is not None


def test_a_server_that_does_not_answer_is_lost(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_process, "_PING_S", 0.1)
    monkeypatch.setattr(server_process, "_ANSWER_TIMEOUT_S", 0.3)
    server.start()
    for _ in range(20):
        server.exits(0.05)
    # As a stopped one, and yet not: nobody looks at its state.
    monkeypatch.setattr(process_table, "_PATIENCE_S", 600.0)
    os.kill(_pid(server), signal.SIGSTOP)
    with pytest.raises(LaunchError, match="did not answer"):
        _wait_until(lambda: server.exits(0.05) or None)
    assert not server.is_alive


def test_a_stopped_server_is_continued_to_clean_up_when_it_is_closed(
    server: ServerProcess, tmp_path: Path
) -> None:
    server.start()
    rank = _fork(server, tmp_path)
    os.kill(_pid(server), signal.SIGSTOP)
    server.close()
    assert not _lives(rank)


_OWNER = """
import os, sys, time
from pathlib import Path
from autotune.launch import server_process
from autotune.launch.server_process import ServerProcess
server_process.sys.executable = sys.argv[1]
folder = Path(sys.argv[2])
scratch = folder / "scratch"
scratch.mkdir()
server = ServerProcess(
    model_type="llama", environment=dict(os.environ), log=folder / "log", scratch_folders=[scratch]
)
if server.start(lambda: print("loading", server._process.pid, flush=True)):
    rank = server.fork(rank=0, spec=folder / "spec", folder=folder, env={"QUICK_RANK": "flee"})
    print("forked", server._process.pid, rank, flush=True)
time.sleep(600)
"""


def _owner(executable: Path, folder: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [PYTHON, "-c", _OWNER, str(executable), str(folder)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def _said(owner: subprocess.Popen[str], word: str) -> list[int]:
    assert owner.stdout is not None
    for line in owner.stdout:
        first, *pids = line.split()
        if first == word:
            return [int(pid) for pid in pids]
    raise AssertionError("it ended")


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_server_ends_with_its_launcher_though_it_is_stopped(
    executable: Path, tmp_path: Path, is_stopped: bool
) -> None:
    with _owner(executable, tmp_path) as owner:
        pids = _said(owner, "forked")
        pids.append(_wait_until(lambda: psutil.Process(pids[1]).children())[0].pid)
        if is_stopped:
            os.kill(pids[0], signal.SIGSTOP)
        owner.kill()
    _wait_until(lambda: not any(map(_lives, pids)))
    assert not (tmp_path / "scratch").exists()


def test_a_server_that_imports_ends_with_its_launcher(executable: Path, tmp_path: Path) -> None:
    with _owner(executable, tmp_path, QUICK_SERVER_LOAD_S="600") as owner:
        [pid] = _said(owner, "loading")
        owner.kill()
    _wait_until(lambda: not _lives(pid))


@pytest.fixture
def quick_launcher(cpu_hardware: Hardware, tmp_path: Path) -> Iterator[Launcher]:
    with Launcher(cpu_hardware, model_type="llama", folder=tmp_path) as launcher:
        yield launcher


@pytest.fixture
def spec(tiny: Workload) -> TrialSpec:
    return TrialSpec(workload=tiny, strategy=Strategy(micro_batch_size=1), num_ranks=2)


def _trial_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "trial"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_trial_whose_server_is_lost_is_worth_another_try(
    quick_launcher: Launcher, spec: TrialSpec, tmp_path: Path, number: int
) -> None:
    def strike(event: Mapping[str, Any]) -> None:
        os.kill(_pid(quick_launcher._server), number)

    # Other tests' launcher may have a server too.
    own = quick_launcher._server._process
    others = [c for c in psutil.Process().children() if own is None or c.pid != own.pid]
    outcome = quick_launcher.run(
        spec, folder=_trial_folder(tmp_path), timeout_s=60.0, on_event=strike
    )
    assert outcome.failure is not None
    assert outcome.failure.kind is FailureKind.LOST_NODE
    assert outcome.failure.kind.says_nothing_about_the_strategy
    assert signal.Signals(number).name in outcome.failure.message
    assert psutil.Process().children() == others


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_trial_that_came_to_its_result_is_not_lost_with_the_server(
    quick_launcher: Launcher,
    spec: TrialSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    monkeypatch.setitem(quick_launcher._server._environment, "QUICK_RANK", "result")
    results: list[Mapping[str, Any]] = []

    def strike(event: Mapping[str, Any]) -> None:
        if event["event"] == "result":
            results.append(event)
            other = tmp_path / "trial" / "rank1.jsonl"
            _wait_until(lambda: other.exists() and "result" in other.read_text())
            os.kill(_pid(quick_launcher._server), number)

    outcome = quick_launcher.run(
        spec, folder=_trial_folder(tmp_path), timeout_s=60.0, on_event=strike
    )
    assert results
    assert outcome.failure is None
    assert outcome.measurement is not None


def test_a_stopped_rank_is_an_interruption_and_no_timeout(
    quick_launcher: Launcher, spec: TrialSpec, tmp_path: Path
) -> None:
    def strike(event: Mapping[str, Any]) -> None:
        server = psutil.Process(_pid(quick_launcher._server))
        os.kill(max(child.pid for child in server.children()), signal.SIGSTOP)

    outcome = quick_launcher.run(
        spec, folder=_trial_folder(tmp_path), timeout_s=60.0, on_event=strike
    )
    assert outcome.failure is not None
    assert outcome.failure.kind is FailureKind.INTERRUPTED
    assert (outcome.failure.rank, "SIGSTOP" in outcome.failure.message) == (1, True)


def test_a_launcher_that_was_stopped_itself_takes_no_trial_for_hung(
    quick_launcher: Launcher, spec: TrialSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher_module, "_PAUSE_S", 0.3)
    seen: list[object] = []

    def pause(event: Mapping[str, Any]) -> None:
        seen.append(event)
        time.sleep(1.5)

    outcome = quick_launcher.run(
        spec,
        folder=_trial_folder(tmp_path),
        timeout_s=1.0,
        on_event=pause,
        should_stop=lambda: "seen" if seen else None,
    )
    assert outcome.failure is not None
    assert outcome.failure.message == "seen"


def test_a_sentence_ends_a_trial_that_waits_for_a_new_server(
    quick_launcher: Launcher, spec: TrialSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(quick_launcher._server._environment, "QUICK_SERVER_LOAD_S", "600")
    outcome = quick_launcher.run(
        spec, folder=_trial_folder(tmp_path), timeout_s=60.0, should_stop=lambda: "enough"
    )
    assert outcome.failure is not None
    assert (outcome.failure.kind, outcome.failure.message) == (FailureKind.INTERRUPTED, "enough")


def test_a_server_may_be_long_in_loading_without_the_trial_timing_out(
    quick_launcher: Launcher, spec: TrialSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(quick_launcher._server._environment, "QUICK_SERVER_LOAD_S", "2")
    seen: list[object] = []
    outcome = quick_launcher.run(
        spec,
        folder=_trial_folder(tmp_path),
        timeout_s=1.5,
        on_event=seen.append,
        should_stop=lambda: "seen" if seen else None,
    )
    assert outcome.failure is not None
    assert outcome.failure.message == "seen"
