"""Runs trials: each one a group of rank processes forked from a warm server.

Knows processes, signals, files and clocks; does not know what a strategy means. However a trial
ends, none of its processes is left and its device memory is free again before `run` returns.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from autotune.drafts import write_file
from autotune.errors import LaunchError, StorageError
from autotune.launch.device_memory import device_bytes_in_use, wait_for_device
from autotune.launch.process_table import StoppedProcesses
from autotune.launch.rank_environment import rank_environment
from autotune.launch.rank_process import ALL_RANKS, NodeShare, RankProcess, RanksEnd, outcome_of
from autotune.launch.scratch_folder import ScratchFolder
from autotune.launch.server_process import ServerProcess
from autotune.machine.hardware import FULL_DISK_BYTES, DeviceType, Hardware
from autotune.trials.trial import Failure, FailureKind, Outcome, TrialSpec

__all__ = ["Launcher"]

_POLL_S = 0.02
_MEMORY_POLL_S = 0.1
_GRACE_S = 1.0
"""How long the other ranks may go on after one has failed, to tell their own reason."""

_HOST_FLOOR_BYTES = 256 * 2**20
"""With less host memory than this left, the trial is stopped before the kernel kills at random."""

_MAX_LOW_POLLS = 10
"""So many looks in a row must find it low: virtual machines are given memory as they fill it."""

_MOST_OUTPUT_BYTES = 256 * 2**20
"""A rank that prints more is stopped, before it fills the disk."""

_PAUSE_S = 5.0
"""A look that comes so late says that this process was stopped itself; ranks are not to blame."""


class Launcher:
    """Runs trials on devices of this host, one at a time.

    Args:
        hardware: the devices of a trial, one rank each.
        model_type: Hugging Face's name of the architecture, imported before the first fork.
        folder: where the server's own log goes.
        slot: which of the launchers that run side by side this is; each has devices of its own.
        num_slots: how many there are.
        scratch_folders: removed for the caller should the process that made them be killed.
        is_offline: whether ranks may load nothing from Hugging Face; a user's own program may.
    """

    def __init__(
        self,
        hardware: Hardware,
        *,
        model_type: str,
        folder: Path,
        slot: int = 0,
        num_slots: int = 1,
        scratch_folders: Sequence[Path] = (),
        is_offline: bool = True,
    ) -> None:
        self._hardware = hardware
        self._slot = slot
        self._num_low_polls = 0
        self._swap_folder: Path | None = None
        self._server = ServerProcess(
            model_type=model_type,
            environment=rank_environment(hardware, slot, num_slots, is_offline=is_offline),
            log=folder / (f"server{slot}.log" if num_slots > 1 else "server.log"),
            scratch_folders=scratch_folders,
        )

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, should_stop: Callable[[], str | None] = lambda: None) -> float | None:
        """Start the server and wait until it is warm; the seconds it took to import.

        Args:
            should_stop: asked while it imports; a sentence ends the wait, and None is returned.

        Raises:
            LaunchError: it ended or did not answer.
        """
        return self._server.start(should_stop)

    def close(self) -> None:
        """End the server and everything below it."""
        self._server.close()

    def run(
        self,
        spec: TrialSpec,
        *,
        folder: Path,
        timeout_s: float,
        on_event: Callable[[Mapping[str, Any]], None] = lambda event: None,
        should_stop: Callable[[], str | None] = lambda: None,
    ) -> Outcome:
        """As `protocols.Runner.run`."""
        end = self.run_share(
            spec,
            ALL_RANKS,
            folder=folder,
            timeout_s=timeout_s,
            on_event=on_event,
            should_stop=should_stop,
        )
        return outcome_of(spec, [end])

    def run_share(
        self,
        spec: TrialSpec,
        share: NodeShare,
        *,
        folder: Path,
        timeout_s: float,
        on_event: Callable[[Mapping[str, Any]], None] = lambda event: None,
        should_stop: Callable[[], str | None] = lambda: None,
    ) -> RanksEnd:
        """Run those ranks of a trial that are this host's, to their end.

        Arguments and errors are those of `protocols.Runner.run`; `on_event` hears of the first of
        these ranks.
        """
        if not self._server.is_alive and self._server.start(should_stop) is None:
            return RanksEnd(ranks=(), stopped=_interrupted(should_stop))
        started = time.monotonic()
        rendezvous = folder / "rendezvous"
        # Ranks that met in an earlier life of this folder are not there any more.
        rendezvous.unlink(missing_ok=True)
        spec_file = folder / "trial.json"
        used_before = device_bytes_in_use(self._hardware, self._slot)
        kills_before = _kernel_oom_kills()
        numbers = share.ranks_of(spec.num_ranks)
        ranks = [RankProcess(number=number, folder=folder) for number in numbers]
        _forget_earlier(folder, ranks)
        environments = [share.environment(number, spec.num_ranks) for number in numbers]
        with self._fresh_swap_folder(spec) as spec:
            write_file(spec_file, json.dumps(spec.to_dict(), indent=1))
            is_server_lost = False
            try:
                stopped = self._fork(ranks, environments, spec_file, should_stop)
                if stopped is None:
                    stopped = self._watch(ranks, started, timeout_s, on_event, should_stop)
            except LaunchError as error:
                # The server was killed under the trial; the next one gets a new server.
                stopped = Failure(kind=FailureKind.LOST_NODE, message=str(error))
                is_server_lost = True
            finally:
                self._end(ranks)
            is_disk_full = self._swap_disk_bytes() < FULL_DISK_BYTES
        if is_server_lost and all(rank.result is not None for rank in ranks):
            # They had all come to their result before; only the news of their end is missing.
            stopped = None
        rendezvous.unlink(missing_ok=True)
        wait_for_device(self._hardware, self._slot, used_before)
        return RanksEnd(
            ranks=tuple(ranks),
            stopped=stopped,
            has_oom_kill=_kernel_oom_kills() > kills_before,
            is_disk_full=is_disk_full,
            duration_s=time.monotonic() - started,
        )

    @contextlib.contextmanager
    def _fresh_swap_folder(self, spec: TrialSpec) -> Iterator[TrialSpec]:
        """The trial with an NVMe folder of its own, if it uses one; removed with all its files.

        The ranks are dead by then, so nobody writes to it again.
        """
        if spec.nvme_path is None or not spec.strategy.uses_nvme:
            yield spec
            return
        try:
            scratch = ScratchFolder("swap", Path(spec.nvme_path))
        except OSError as error:
            raise LaunchError(
                f"--nvme-path {spec.nvme_path}: cannot create a folder in it: "
                f"{error.strerror or error}"
            ) from error
        self._swap_folder = scratch.path
        try:
            yield replace(spec, nvme_path=str(scratch.path))
        finally:
            self._swap_folder = None
            scratch.close()

    def _fork(
        self,
        ranks: list[RankProcess],
        environments: list[dict[str, str]],
        spec_file: Path,
        should_stop: Callable[[], str | None],
    ) -> Failure | None:
        """Start the ranks; a failure if that was interrupted."""
        for rank, environment in zip(ranks, environments, strict=True):
            pid = self._server.fork(
                rank=rank.number,
                spec=spec_file,
                folder=rank.folder,
                swap_folder=self._swap_folder,
                env=environment,
                should_stop=should_stop,
            )
            if pid is None:
                return _interrupted(should_stop)
            rank.pid = pid
        return None

    def _watch(
        self,
        ranks: list[RankProcess],
        started: float,
        timeout_s: float,
        on_event: Callable[[Mapping[str, Any]], None],
        should_stop: Callable[[], str | None],
    ) -> Failure | None:
        """Wait for the ranks' end; a failure if it was brought about from here."""
        give_up_at = memory_checked = 0.0
        stopped_processes = StoppedProcesses()
        looked_at = time.monotonic()
        while any(rank.is_running for rank in ranks):
            self._collect(ranks, on_event)
            now = time.monotonic()
            if now - looked_at > _PAUSE_S:
                started += now - looked_at
            looked_at = now
            if not any(rank.is_running for rank in ranks):
                break
            if any(rank.has_failed for rank in ranks):
                give_up_at = give_up_at or now + _GRACE_S
                if now >= give_up_at:
                    return None
            elif now - started > timeout_s:
                _dump_stacks(ranks)
                return _stopped(
                    ranks,
                    FailureKind.TIMEOUT,
                    f"the trial did not end within {timeout_s:.0f} s (--trial-timeout)",
                )
            elif reason := should_stop():
                return _stopped(ranks, FailureKind.INTERRUPTED, reason)
            elif idle := stopped_processes.find(r.pid for r in ranks if r.is_running):
                halted = [rank for rank in ranks if rank.pid == idle]
                message = "the trial was stopped from outside (SIGSTOP)"
                return _stopped(halted, FailureKind.INTERRUPTED, message)
            if now - memory_checked >= _MEMORY_POLL_S:
                memory_checked = now
                hog = self._memory_hog(ranks) or self._disk_hog(ranks) or _output_hog(ranks)
                if hog:
                    return hog
        self._collect(ranks, on_event, wait_s=0.0)
        return None

    def _collect(
        self,
        ranks: list[RankProcess],
        on_event: Callable[[Mapping[str, Any]], None],
        wait_s: float = _POLL_S,
    ) -> None:
        """Take in what ended and what was written."""
        for pid, status in self._server.exits(wait_s):
            for rank in ranks:
                if rank.pid == pid:
                    rank.status, rank.ended_at = status, time.time()
        for rank in ranks:
            for event in rank.new_events():
                if rank is ranks[0]:
                    on_event(event)

    def _memory_hog(self, ranks: list[RankProcess]) -> Failure | None:
        """Host memory running out, or a CPU rank beyond its share of it."""
        import psutil

        limit = self._hardware.device_memory_bytes
        if self._hardware.device_type is DeviceType.CPU:
            for rank in ranks:
                with contextlib.suppress(psutil.NoSuchProcess):
                    resident = psutil.Process(rank.pid).memory_info().rss
                    if resident > limit:
                        message = (
                            f"rank {rank.number} used {resident / 2**30:.1f} GiB of the host; "
                            f"its limit is {limit / 2**30:.1f} GiB"
                        )
                        return _stopped([rank], FailureKind.HOST_OUT_OF_MEMORY, message)
        available = psutil.virtual_memory().available
        self._num_low_polls = self._num_low_polls + 1 if available < _HOST_FLOOR_BYTES else 0
        if self._num_low_polls >= _MAX_LOW_POLLS:
            message = f"only {available / 2**20:.0f} MiB of host memory were free"
            return _stopped(ranks, FailureKind.HOST_OUT_OF_MEMORY, message)
        return None

    def _disk_hog(self, ranks: list[RankProcess]) -> Failure | None:
        """The disk under --nvme-path running full, by the trial or by anybody else."""
        free = self._swap_disk_bytes()
        if free >= FULL_DISK_BYTES:
            return None
        message = f"only {free / 2**20:.0f} MiB were free on the disk of --nvme-path"
        return _stopped(ranks, FailureKind.DISK_FULL, message)

    def _swap_disk_bytes(self) -> float:
        """Room on the disk of the trial's swap folder; without one, no end of it."""
        folder = self._swap_folder
        return math.inf if folder is None else shutil.disk_usage(folder).free

    def _end(self, ranks: list[RankProcess]) -> None:
        """Kill what still runs, and everything it started."""
        for rank in ranks if self._server.is_alive else ():
            if rank.pid and rank.is_running:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(rank.pid, signal.SIGKILL)
        with contextlib.suppress(LaunchError):
            self._server.sweep()
        for rank in ranks:
            for _ in rank.new_events():
                pass


def _output_hog(ranks: list[RankProcess]) -> Failure | None:
    """A rank that prints without end."""
    for rank in ranks:
        paths = (rank.folder / f"rank{rank.number}.{kind}" for kind in ("out", "err"))
        sizes = [path.stat().st_size for path in paths if path.exists()]
        if sum(sizes) > _MOST_OUTPUT_BYTES:
            message = (
                f"rank {rank.number} printed over {_MOST_OUTPUT_BYTES / 2**20:.0f} MiB; have it "
                "print less"
            )
            return _stopped([rank], FailureKind.CRASH, message)
    return None


def _forget_earlier(folder: Path, ranks: list[RankProcess]) -> None:
    """Remove what ranks of these numbers wrote in an earlier life of the folder.

    A study whose database was lost numbers its trials anew: their results are none of this one's.

    Raises:
        StorageError: something of that name cannot be removed, such as a folder.
    """
    kinds = ("jsonl", "phase", "out", "err")
    names = ["trial.json", *(f"rank{rank.number}.{kind}" for rank in ranks for kind in kinds)]
    # Ranks that met there are not there any more.
    for path in (folder / name for name in ("rendezvous", *names)):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"{path} cannot be written: {error.strerror or error}; move it away"
            ) from error


def _dump_stacks(ranks: list[RankProcess]) -> None:
    """Have every rank write where it hangs into its error log."""
    for rank in ranks:
        with contextlib.suppress(ProcessLookupError):
            os.kill(rank.pid, signal.SIGUSR1)
    time.sleep(0.2)


def _interrupted(should_stop: Callable[[], str | None]) -> Failure:
    """The failure of a trial that was stopped before its ranks ran."""
    message = should_stop() or "the trial was stopped before it started"
    return Failure(kind=FailureKind.INTERRUPTED, message=message)


def _stopped(ranks: list[RankProcess], kind: FailureKind, message: str) -> Failure:
    first = ranks[0]
    return Failure(kind=kind, message=message, phase=first.phase(), rank=first.number)


def _kernel_oom_kills() -> int:
    """How many processes the kernel has killed for want of memory, as Linux counts them."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
