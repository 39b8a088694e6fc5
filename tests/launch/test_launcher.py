"""Trials that go wrong for real, in real processes, and what they leave behind: nothing."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conftest import RunTrial
from planted_model import planted_workload

from autotune.errors import StorageError
from autotune.launch.launcher import Launcher
from autotune.machine.hardware import Hardware
from autotune.question.workload import Workload
from autotune.space.strategy import Strategy
from autotune.trials.trial import FailureKind, Outcome, Phase, TrialSpec

pytestmark = pytest.mark.slow


def _descendants_that_are_no_server() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "autotune.worker.server" not in _command(child)]


def _command(process: psutil.Process) -> str:
    try:
        # A forked rank keeps its server's command line: its parent tells them apart.
        parent = process.parent()
        is_rank = parent is not None and "autotune.worker.server" in " ".join(parent.cmdline())
        return "rank" if is_rank else " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return "autotune.worker.server"


@pytest.fixture
def run_planted(run_trial: RunTrial, tiny: Workload, tmp_path: Path) -> Callable[..., Outcome]:
    def run(fault: str, timeout_s: float = 60.0) -> Outcome:
        workload = planted_workload(tmp_path / "model", fault, tiny)
        folder = tmp_path / "trial"
        folder.mkdir()
        return run_trial(workload=workload, folder=folder, timeout_s=timeout_s)

    return run


@pytest.mark.parametrize(
    ("fault", "kind", "phase"),
    [
        ("exit_at_once", FailureKind.CRASH, Phase.FORWARD),
        ("segfault", FailureKind.CRASH, Phase.FORWARD),
        ("flee", FailureKind.CRASH, Phase.FORWARD),
        ("run_out_of_device_memory", FailureKind.DEVICE_OUT_OF_MEMORY, Phase.FORWARD),
        ("run_out_of_host_memory", FailureKind.HOST_OUT_OF_MEMORY, Phase.FORWARD),
        ("lose_a_peer", FailureKind.COMMUNICATION, Phase.FORWARD),
        ("refuse", FailureKind.INVALID_CONFIGURATION, Phase.INIT),
    ],
)
def test_a_fault_in_one_rank_is_told_by_its_kind_and_leaves_no_process(
    run_planted: Callable[..., Outcome],
    run_trial: RunTrial,
    fault: str,
    kind: FailureKind,
    phase: Phase,
) -> None:
    outcome = run_planted(fault)
    assert outcome.failure is not None
    assert (outcome.failure.kind, outcome.failure.phase) == (kind, phase)
    assert outcome.failure.rank == 1
    assert _descendants_that_are_no_server() == []
    assert run_trial(zero_stage=1).measurement is not None


def test_a_hung_rank_ends_at_its_timeout_and_tells_where_it_hung(
    run_planted: Callable[..., Outcome], tmp_path: Path
) -> None:
    outcome = run_planted("hang", timeout_s=8.0)
    assert outcome.failure is not None
    assert outcome.failure.kind is FailureKind.TIMEOUT
    assert outcome.duration_s < 20
    assert "in hang" in (tmp_path / "trial" / "rank1.err").read_text()
    assert _descendants_that_are_no_server() == []


def test_a_rank_killed_from_outside_is_interrupted_and_worth_another_try(
    launcher: Launcher, tiny: Workload, tmp_path: Path
) -> None:
    killed = threading.Event()

    def kill_a_rank(event: object) -> None:
        if not killed.is_set():
            killed.set()
            server = next(p for p in psutil.Process().children() if "server" in _command(p))
            os.kill(max(child.pid for child in server.children()), signal.SIGKILL)

    spec = TrialSpec(
        workload=tiny,
        strategy=Strategy(micro_batch_size=1),
        num_ranks=2,
        timed_steps=500,
        timed_s=1e9,
        relative_half_width=0.0,
    )
    outcome = launcher.run(spec, folder=tmp_path, timeout_s=60, on_event=kill_a_rank)
    assert outcome.failure is not None
    assert outcome.failure.kind is FailureKind.INTERRUPTED
    assert outcome.failure.kind.says_nothing_about_the_strategy
    assert "SIGKILL" in outcome.failure.message


def test_a_killed_server_loses_the_trial_but_not_the_next_one(
    launcher: Launcher, run_trial: RunTrial, tiny: Workload, tmp_path: Path
) -> None:
    killed = threading.Event()

    def kill_the_server(event: object) -> None:
        # What a rank told before is still read after, when there is no server any more.
        if not killed.is_set():
            killed.set()
            server = next(p for p in psutil.Process().children() if "server" in _command(p))
            server.kill()

    spec = TrialSpec(
        workload=tiny,
        strategy=Strategy(micro_batch_size=1),
        num_ranks=2,
        timed_steps=500,
        timed_s=1e9,
        relative_half_width=0.0,
    )
    outcome = launcher.run(spec, folder=tmp_path, timeout_s=60, on_event=kill_the_server)
    assert outcome.failure is not None
    assert outcome.failure.kind is FailureKind.LOST_NODE
    assert run_trial().measurement is not None


def test_a_trial_can_be_stopped_from_outside(
    launcher: Launcher, tiny: Workload, tmp_path: Path
) -> None:
    started = time.monotonic()
    spec = TrialSpec(
        workload=tiny,
        strategy=Strategy(micro_batch_size=1),
        num_ranks=2,
        timed_steps=5000,
        timed_s=1e9,
        relative_half_width=0.0,
    )
    outcome = launcher.run(
        spec,
        folder=tmp_path,
        timeout_s=60,
        should_stop=lambda: "enough" if time.monotonic() - started > 1 else None,
    )
    assert outcome.failure is not None
    assert (outcome.failure.kind, outcome.failure.message) == (FailureKind.INTERRUPTED, "enough")
    assert _descendants_that_are_no_server() == []


def test_ranks_listen_on_the_loopback_interface_alone(
    launcher: Launcher, tiny: Workload, tmp_path: Path
) -> None:
    addresses: set[str] = set()

    def look(event: object) -> None:
        for child in psutil.Process().children(recursive=True):
            # A process that ends meanwhile listens no more.
            with contextlib.suppress(psutil.Error, FileNotFoundError):
                for connection in child.net_connections(kind="inet"):
                    if connection.status == psutil.CONN_LISTEN:
                        addresses.add(connection.laddr.ip)

    spec = TrialSpec(workload=tiny, strategy=Strategy(micro_batch_size=1), num_ranks=2)
    outcome = launcher.run(spec, folder=tmp_path, timeout_s=60, on_event=look)
    assert outcome.measurement is not None
    assert addresses  # gloo's ranks do listen
    assert all(ipaddress.ip_address(address).is_loopback for address in addresses)


def test_each_rank_writes_its_own_logs(run_trial: RunTrial, tmp_path: Path) -> None:
    run_trial(folder=tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {f"rank{n}.{suffix}" for n in (0, 1) for suffix in ("out", "err", "jsonl")} <= names


def test_a_lock_left_by_a_killed_build_is_gone_when_trials_start(
    cpu_hardware: Hardware, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    lock = tmp_path / "extensions" / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    with Launcher(cpu_hardware, model_type="llama", folder=tmp_path) as launcher:
        launcher.start()
        assert not lock.exists()


def test_a_trial_knows_nothing_of_an_earlier_one_of_its_folder(
    run_trial: RunTrial, tmp_path: Path
) -> None:
    """As where a study's database was lost, and its trials are numbered anew."""
    stale = '{"event": "result", "at": 0, "step_times_s": [1e-9], "losses": [0.0]}\n'
    for rank in range(2):
        (tmp_path / f"rank{rank}.jsonl").write_text(stale + '{"event": "step", "loss"' * 4000)
        (tmp_path / f"rank{rank}.err").write_text("of another life\n")
    (tmp_path / "trial.json").write_text("{")
    (tmp_path / "notes.txt").write_text("mine")
    outcome = run_trial(folder=tmp_path)
    assert outcome.measurement is not None, outcome.failure
    assert min(outcome.measurement.step_times_s) > 1e-4
    assert "of another life" not in (tmp_path / "rank0.err").read_text()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_in_the_place_of_a_trials_file_is_named(
    run_trial: RunTrial, tmp_path: Path
) -> None:
    (tmp_path / "rank1.jsonl").mkdir()
    with pytest.raises(StorageError, match=r"rank1\.jsonl cannot be written"):
        run_trial(folder=tmp_path)
