"""The ranks of a trial on one node: forked from this node's own warm server, watched by a thread.

The thread leaves the actor free to report and to be stopped. Does not know Ray.
"""

from __future__ import annotations

import os
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from autotune.errors import LaunchError
from autotune.launch.launcher import Launcher
from autotune.launch.rank_process import NodeShare, RanksEnd
from autotune.launch.scratch_folder import ScratchFolder
from autotune.machine.hardware import DeviceType, Hardware
from autotune.machine.load import (
    LoadMeter,
    OtherWork,
    busy_gpu_fraction,
    gpu_load_meter,
    other_work,
)
from autotune.trials.trial import Failure, FailureKind, TrialSpec

__all__ = ["RankHost", "ShareEnd"]

_END_OF_FILE_BYTES = 64 * 2**10
"""So much of the end of each file is sent to the study's folder."""

_LEAST_S = 0.2
"""Events are collected for so long before they are handed on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShareEnd:
    """How one node's share of a trial ended."""

    ranks: RanksEnd
    files: Mapping[str, str] = field(default_factory=dict)
    """The end of each file that it wrote."""
    others: OtherWork = field(default_factory=OtherWork)
    """What work outside Ray took on this node."""


class RankHost:
    """Runs one share of a trial after the other.

    Args:
        hardware: what trials have on this node.
        model_type: Hugging Face's name of the architecture.
        study: for the folder's name.
    """

    def __init__(self, hardware: Hardware, *, model_type: str, study: str) -> None:
        self._scratch = ScratchFolder("ranks")
        # The study's name in its path tells whose it is.
        self._folder = self._scratch.path / study
        self._folder.mkdir()
        _share_cores(hardware)
        self._hardware = hardware
        self._gpu_fraction = busy_gpu_fraction(hardware)
        """Before any trial has run here; stands where NVML does not tell processes apart."""
        self._launcher = Launcher(
            hardware,
            model_type=model_type,
            folder=self._folder,
            scratch_folders=(self._scratch.path,),
        )
        self._news: queue.Queue[Mapping[str, Any] | ShareEnd | Exception] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._stop_reason: str | None = None

    def warm(self) -> None:
        """Start the server.

        Raises:
            LaunchError: it did not start.
        """
        try:
            self._launcher.start()
        except LaunchError as error:
            # Its log lies on this node; why it ended is of use where the search runs.
            log = self._folder / "server.log"
            lines = log.read_text(errors="replace").splitlines() if log.exists() else []
            raise LaunchError(f"{error}: {' '.join(lines[-1:])}") from error

    def begin(self, spec: TrialSpec, share: NodeShare, *, timeout_s: float) -> None:
        """Start these ranks; what is left of an earlier trial is stopped first."""
        self.stop("another trial takes its place")
        self._stop_reason = None
        self._news = queue.Queue()
        self._thread = threading.Thread(
            target=self._run, args=(spec, share, timeout_s, self._news), daemon=True
        )
        self._thread.start()

    def _run(
        self, spec: TrialSpec, share: NodeShare, timeout_s: float, news: queue.Queue[Any]
    ) -> None:
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        # All trials of this node are below the same parent; it is Ray's, and so not other work.
        parent = psutil.Process().parent()
        meter = LoadMeter(parent)
        gpus = gpu_load_meter(self._hardware, root=None if parent is None else parent.pid)

        def look_and_ask() -> str | None:
            gpus.look()
            return self._stop_reason

        try:
            ranks = self._launcher.run_share(
                spec,
                share,
                folder=folder,
                timeout_s=timeout_s,
                on_event=news.put,
                should_stop=look_and_ask,
            )
            others = other_work(
                self._hardware,
                cores=meter.cores_of_others(),
                gpus=gpus.of_others(),
                gpu_fraction_before=self._gpu_fraction,
            )
            news.put(ShareEnd(ranks=ranks, files=_ends_of_files(folder), others=others))
        except LaunchError as error:
            lost = Failure(kind=FailureKind.LOST_NODE, message=str(error))
            news.put(ShareEnd(ranks=RanksEnd(ranks=(), stopped=lost)))
        except Exception as error:  # handed to whoever waits for the end
            news.put(error)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def news(self, wait_s: float) -> tuple[list[Mapping[str, Any]], ShareEnd | None]:
        """What rank 0 wrote, and how the share ended if it has.

        Args:
            wait_s: how long to wait for the first of it.
        """
        events: list[Mapping[str, Any]] = []
        give_up_at = time.monotonic() + wait_s
        while (left_s := give_up_at - time.monotonic()) > 0:
            try:
                item = self._news.get(timeout=left_s)
            except queue.Empty:
                break
            if isinstance(item, ShareEnd):
                return events, item
            if isinstance(item, Exception):
                raise item
            events.append(item)
            give_up_at = min(give_up_at, time.monotonic() + _LEAST_S)
        return events, None

    def ask_to_stop(self, reason: str) -> None:
        """Have the ranks killed; their end comes with the news."""
        self._stop_reason = reason

    def stop(self, reason: str) -> None:
        """Have the ranks killed, and wait until they are."""
        self.ask_to_stop(reason)
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Leave no process and no file behind."""
        self.stop("the search has ended")
        self._launcher.close()
        self._scratch.close()


def _share_cores(hardware: Hardware) -> None:
    """As many threads a rank as its share of the cores.

    Ray sets the variable for an actor with one process; here several ranks share it.
    """
    if hardware.device_type is DeviceType.CPU:
        os.environ["OMP_NUM_THREADS"] = "1"
    else:
        os.environ.pop("OMP_NUM_THREADS", None)


def _ends_of_files(folder: Path) -> dict[str, str]:
    ends = {}
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix in (".json", ".jsonl", ".out", ".err", ".phase"):
            data = file.read_bytes()[-_END_OF_FILE_BYTES:]
            ends[file.name] = data.decode("utf-8", errors="replace")
    return ends
