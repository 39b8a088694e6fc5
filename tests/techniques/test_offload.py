"""Offload to host memory and NVMe: real engines and swap files, a disk that is really full."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from autotune.launch.launcher import Launcher
from autotune.machine.hardware import Hardware, with_nvme
from autotune.machine.software import Software, detect_software
from autotune.question.workload import Method, Workload, load_model_shape
from autotune.space.compatibility import conflict
from autotune.space.strategy import Strategy
from autotune.trials.trial import FailureKind, Outcome, Phase, TrialSpec
from autotune.worker.failures import classify

pytestmark = pytest.mark.slow

needs_async_io = pytest.mark.skipif(
    not detect_software().has_async_io, reason="DeepSpeed's asynchronous I/O needs libaio-dev"
)

_SIZES = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 2048,
}
"""Weights of which two ranks hold more than the 1 MiB that DeepSpeed swaps at least."""


@pytest.fixture(scope="module")
def wide(tiny: Workload, tmp_path_factory: pytest.TempPathFactory) -> Workload:
    """Eight million parameters."""
    folder = tmp_path_factory.mktemp("wide")
    config = dict(load_model_shape("tiny").config) | _SIZES
    (folder / "config.json").write_text(json.dumps(config))
    return replace(tiny, model=load_model_shape(str(folder)), seq_len=16)


@dataclass(frozen=True, kw_only=True, slots=True)
class Swapped:
    """A trial, and the files that were under its --nvme-path while it ran."""

    outcome: Outcome
    files: Mapping[str, int]
    """Bytes by the path below the trial's own folder."""
    num_folders: int
    """Folders for trials, all through it."""


RunSwapping = Callable[..., Swapped]


@pytest.fixture(scope="module")
def run_swapping(
    launcher: Launcher, wide: Workload, tmp_path_factory: pytest.TempPathFactory
) -> RunSwapping:
    """Five steps of two micro-batches in fp32, whatever the time they take."""

    def run(nvme_path: Path | None = None, *, workload: Workload = wide, **knobs: Any) -> Swapped:
        files: dict[str, int] = {}
        folders: set[str] = set()

        def look(event: object) -> None:
            for file in nvme_path.glob("*/**/*.swp") if nvme_path else ():
                folder, *rest = file.relative_to(nvme_path).parts
                folders.add(folder)
                files["/".join(rest)] = file.stat().st_size

        knobs = {"zero_stage": 3, "precision": "fp32", "micro_batch_size": 2} | knobs
        spec = TrialSpec(
            workload=workload,
            strategy=Strategy.from_dict(knobs),
            num_ranks=2,
            warmup_steps=3,
            timed_steps=2,
            learning_rate=1e-4,
            nvme_path=str(nvme_path) if nvme_path else None,
        )
        folder = tmp_path_factory.mktemp("trial")
        outcome = launcher.run(spec, folder=folder, timeout_s=500.0, on_event=look)
        return Swapped(outcome=outcome, files=files, num_folders=len(folders))

    return run


def _losses(outcome: Outcome) -> tuple[float, ...]:
    assert outcome.measurement is not None, outcome.failure
    assert len(outcome.measurement.losses) == 5
    return outcome.measurement.losses


@pytest.fixture(scope="module")
def plain_losses(run_swapping: RunSwapping) -> tuple[float, ...]:
    """Without ZeRO and without offload."""
    return _losses(run_swapping(zero_stage=0).outcome)


@needs_async_io
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("knobs", "kinds"),
    [
        ({"offload_optimizer": "nvme"}, ["optimizer"]),
        ({"offload_param": "nvme"}, ["float32params"]),
        ({"offload_optimizer": "cpu", "offload_param": "nvme"}, ["float32params"]),
        ({"offload_optimizer": "nvme", "offload_param": "nvme"}, ["optimizer", "float32params"]),
    ],
    ids=str,
)
def test_swap_files_appear_are_used_and_are_removed_and_the_loss_stays(
    run_swapping: RunSwapping,
    plain_losses: tuple[float, ...],
    tmp_path: Path,
    knobs: dict[str, str],
    kinds: list[str],
) -> None:
    swapped = run_swapping(tmp_path, **knobs)
    assert _losses(swapped.outcome) == pytest.approx(plain_losses, rel=1e-5)
    assert {name.split("/")[1] for name in swapped.files} == set(kinds)
    assert swapped.num_folders == 1
    assert list(tmp_path.iterdir()) == []
    if knobs.get("offload_optimizer") == "nvme":
        _holds_master_weights_and_both_moments(swapped)


def _holds_master_weights_and_both_moments(swapped: Swapped) -> None:
    measured = swapped.outcome.measurement
    assert measured is not None
    owned = measured.num_parameters / 2
    states = {
        name: size
        for name, size in swapped.files.items()
        if "/optimizer/" in name and "gradient" not in name
    }
    assert sum(states.values()) / 2 == pytest.approx(12 * owned, rel=0.01)
    assert measured.optimizer_state_bytes == pytest.approx(8 * owned, rel=0.01)


@pytest.mark.parametrize(
    "knobs",
    [
        {"zero_stage": 1, "offload_optimizer": "cpu"},
        {"zero_stage": 2, "offload_optimizer": "cpu"},
        {"zero_stage": 3, "offload_optimizer": "cpu"},
        {"zero_stage": 3, "offload_param": "cpu"},
        {"zero_stage": 3, "offload_optimizer": "cpu", "offload_param": "cpu"},
    ],
    ids=str,
)
def test_offload_to_host_memory_leaves_the_loss_as_it_is(
    run_swapping: RunSwapping, plain_losses: tuple[float, ...], knobs: dict[str, Any]
) -> None:
    assert _losses(run_swapping(**knobs).outcome) == pytest.approx(plain_losses, rel=1e-5)


@needs_async_io
def test_frozen_weights_are_offloaded_beside_adapters(
    run_swapping: RunSwapping, wide: Workload, tmp_path: Path
) -> None:
    lora = replace(wide, method=Method.LORA)
    plain = _losses(run_swapping(workload=lora, lora_rank=4).outcome)
    swapped = run_swapping(tmp_path, workload=lora, lora_rank=4, offload_param="nvme")
    assert _losses(swapped.outcome) == pytest.approx(plain, rel=1e-5)
    assert sum(swapped.files.values()) > 0.5 * 4 * wide.model.num_parameters


@needs_async_io
def test_nothing_of_a_killed_trial_stays_and_nothing_of_the_users_goes(
    launcher: Launcher, wide: Workload, tmp_path: Path
) -> None:
    nvme, logs = tmp_path / "nvme", tmp_path / "logs"
    nvme.mkdir()
    logs.mkdir()
    own = nvme / "precious.swp"
    own.write_text("mine")
    seen: list[Path] = []

    def kill_a_rank(event: Mapping[str, Any]) -> None:
        if event["event"] == "step" and not seen:
            seen.extend(nvme.glob("autotune-swap-*/**/*.swp"))
            server = next(p for p in psutil.Process().children() if p.children())
            os.kill(max(child.pid for child in server.children()), signal.SIGKILL)

    spec = _endless(wide, nvme)
    outcome = launcher.run(spec, folder=logs, timeout_s=240.0, on_event=kill_a_rank)
    assert outcome.failure is not None
    assert outcome.failure.kind is FailureKind.CRASH
    assert seen
    assert list(nvme.iterdir()) == [own]


def _endless(workload: Workload, nvme: Path) -> TrialSpec:
    return TrialSpec(
        workload=workload,
        strategy=Strategy.from_dict(
            {"zero_stage": 3, "precision": "fp32", "offload_optimizer": "nvme"}
        ),
        num_ranks=2,
        warmup_steps=500,
        nvme_path=str(nvme),
    )


_SEARCH = """
import json, sys
from pathlib import Path
from autotune.machine.hardware import detect_hardware
from autotune.launch.launcher import Launcher
from autotune.trials.trial import TrialSpec

spec, folder = TrialSpec.from_dict(json.loads(sys.argv[1])), Path(sys.argv[2])
with Launcher(detect_hardware(2), model_type="llama", folder=folder) as launcher:
    tell = lambda event: print(event, flush=True)
    launcher.run(spec, folder=folder, timeout_s=240, on_event=tell)
"""


@needs_async_io
def test_a_killed_search_leaves_no_swap_files(wide: Workload, tmp_path: Path) -> None:
    nvme, logs = tmp_path / "nvme", tmp_path / "logs"
    nvme.mkdir()
    logs.mkdir()
    spec = json.dumps(_endless(wide, nvme).to_dict())
    command = [sys.executable, "-c", _SEARCH, spec, str(logs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as search:
        assert search.stdout is not None
        assert next((line for line in search.stdout if "'step'" in line), None), (
            "no step was taken"
        )
        assert list(nvme.glob("*/**/*.swp"))
        search.kill()
    deadline = time.monotonic() + 20
    while list(nvme.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list(nvme.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 MiB, of which the launcher leaves 64 alone."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@needs_async_io
@pytest.mark.parametrize("is_watched", [True, False])
def test_a_full_disk_is_its_own_kind_of_failure(
    run_swapping: RunSwapping,
    small_disk: Path,
    is_watched: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not is_watched:
        # As where the disk is filled faster than the launcher looks: a rank finds it full.
        monkeypatch.setattr("autotune.launch.launcher._MEMORY_POLL_S", 1e9)
    swapped = run_swapping(small_disk, offload_optimizer="nvme", offload_param="nvme")
    failure = swapped.outcome.failure
    assert failure is not None
    assert failure.kind is FailureKind.DISK_FULL
    assert "--nvme-path" in failure.message
    assert not failure.kind.says_nothing_about_the_strategy
    assert not failure.kind.is_out_of_memory
    assert list(small_disk.iterdir()) == []


def test_a_write_that_finds_no_room_is_a_full_disk(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        (small_disk / "file").write_bytes(bytes(101 * 2**20))
    assert caught.value.errno == errno.ENOSPC
    assert classify(caught.value, Phase.STEP) is FailureKind.DISK_FULL
    # DeepSpeed's asynchronous I/O raises a bare AssertionError once it reads back what is missing.
    assert classify(AssertionError(), Phase.STEP, str(small_disk)) is FailureKind.DISK_FULL
    assert classify(AssertionError(), Phase.STEP, "/") is FailureKind.CRASH


class TestRules:
    SOFTWARE = Software(versions={}, has_compiler=True, has_async_io=True)

    def _words(self, workload: Workload, hardware: Hardware, **knobs: Any) -> str:
        strategy = Strategy.from_dict({"zero_stage": 3} | knobs)
        return conflict(strategy, workload, hardware, self.SOFTWARE) or ""

    def test_nvme_needs_a_path(
        self, wide: Workload, cpu_hardware: Hardware, tmp_path: Path
    ) -> None:
        for knob in ("offload_optimizer", "offload_param"):
            assert "--nvme-path FOLDER" in self._words(wide, cpu_hardware, **{knob: "nvme"})
            with_path = with_nvme(cpu_hardware, tmp_path)
            assert not self._words(wide, with_path, precision="fp32", **{knob: "nvme"})

    def test_nvme_needs_libaio(
        self, wide: Workload, cpu_hardware: Hardware, tmp_path: Path
    ) -> None:
        strategy = Strategy.from_dict({"zero_stage": 3, "offload_param": "nvme"})
        hardware = with_nvme(cpu_hardware, tmp_path)
        words = conflict(strategy, wide, hardware, replace(self.SOFTWARE, has_async_io=False))
        assert "apt install libaio-dev" in (words or "")

    def test_what_deepspeed_would_leave_in_memory_is_refused(
        self, tiny: Workload, cpu_hardware: Hardware, tmp_path: Path
    ) -> None:
        hardware = with_nvme(cpu_hardware, tmp_path)
        assert "1 MiB" in self._words(tiny, hardware, offload_param="nvme")
        lora = replace(tiny, method=Method.LORA)
        assert "1 MiB" in self._words(lora, hardware, offload_optimizer="nvme", lora_rank=2)

    def test_a_ratio_is_refused_where_both_parts_are_the_cpus(
        self, wide: Workload, cpu_hardware: Hardware
    ) -> None:
        words = self._words(wide, cpu_hardware, offload_optimizer="cpu", offload_ratio=0.5)
        assert "offload_ratio 0.5 needs a GPU" in words
