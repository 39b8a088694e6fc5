"""The launcher's end of the warm server: starts it, talks to it, notices when it is gone."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from autotune.errors import LaunchError, StorageError
from autotune.launch.process_table import MARK, StoppedProcesses, kill_marked
from autotune.machine.extensions import remove_abandoned_locks

__all__ = ["ServerProcess"]

_START_TIMEOUT_S = 300.0
_ANSWER_TIMEOUT_S = 30.0
_CLOSE_TIMEOUT_S = 10.0
_PING_S = 5.0
"""A server that has said nothing for so long is asked whether it still answers."""
_POLL_S = 0.1
_MAX_LOADS = 5
"""So often in a row it may be killed while it imports, before that is no accident any more."""


class ServerProcess:
    """One process of `worker/server.py`, and its successors.

    One that is gone, or does not answer, is killed with everything below it; the next `start`
    replaces it.

    Args:
        model_type: the architecture to import before the first fork.
        environment: its whole environment.
        log: file for whatever it and the libraries print.
        scratch_folders: to be removed by the server should it outlive its launcher.
    """

    def __init__(
        self,
        *,
        model_type: str,
        environment: dict[str, str],
        log: Path,
        scratch_folders: Sequence[Path] = (),
    ) -> None:
        self._model_type = model_type
        self._environment = environment
        self._log = log
        self._scratch_folders = scratch_folders
        self._process: subprocess.Popen[bytes] | None = None
        self._mark = ""
        self._is_warm = False
        self._heard_at = 0.0
        self._pinged_at: float | None = None
        self._stopped = StoppedProcesses()
        self._pending = b""
        self._exits: deque[tuple[int, int]] = deque()

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def start(self, should_stop: Callable[[], str | None] = lambda: None) -> float | None:
        """Start it and wait until its imports are done; the seconds they took.

        One that is killed or stopped meanwhile is started again, a few times.

        Args:
            should_stop: asked while it imports; a sentence ends the wait, and None is returned.

        Raises:
            LaunchError: it ended by itself, was killed again and again, or did not become ready;
                the message names its log.
        """
        for load in range(1, _MAX_LOADS + 1):
            try:
                return self._load(should_stop)
            except LaunchError as error:
                # A Ctrl-C that comes before it has a session of its own ends it too.
                if should_stop():
                    return None
                if load == _MAX_LOADS or not isinstance(error, _KilledError):
                    raise
        return None

    def _load(self, should_stop: Callable[[], str | None]) -> float | None:
        """Start it once."""
        self.close()
        self._pending = b""
        self._exits.clear()
        self._is_warm = False
        self._mark = uuid.uuid4().hex
        command = [sys.executable, "-m", "autotune.worker.server", self._model_type]
        with self._opened_log() as log:
            self._process = subprocess.Popen(
                [*command, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environment | {MARK: self._mark},
                start_new_session=True,
            )
        report = self._wait_for("ready", _START_TIMEOUT_S, should_stop)
        if report is None:
            return None
        self._is_warm = True
        if self._scratch_folders:
            self._send({"scratch": list(map(str, self._scratch_folders))})
        return float(report["ready"])

    def _opened_log(self) -> BinaryIO:
        try:
            return self._log.open("ab")
        except OSError as error:
            raise StorageError(
                f"{self._log} cannot be written: {error.strerror or error}; move it away"
            ) from error

    def fork(
        self,
        *,
        rank: int,
        spec: Path,
        folder: Path,
        env: dict[str, str],
        swap_folder: Path | None = None,
        should_stop: Callable[[], str | None] = lambda: None,
    ) -> int | None:
        """Fork one rank; its process id, which is also its process group's.

        Args:
            rank: which rank.
            spec: the trial, as JSON.
            folder: for its output.
            env: what its environment has beside the server's.
            swap_folder: to be removed by the server should it outlive its launcher.
            should_stop: asked while it does not answer; a sentence ends the wait and the server,
                and None is returned.

        Raises:
            LaunchError: the server is gone or cannot fork.
        """
        request = {"rank": rank, "spec": str(spec), "folder": str(folder), "env": env}
        if swap_folder is not None:
            request["swap_folder"] = str(swap_folder)
        self._send({"fork": request})
        report = self._wait_for("forked", _ANSWER_TIMEOUT_S, should_stop)
        if report is None:
            # Whatever it answers later would be taken for the answer to another request.
            self._kill()
            return None
        return int(report["forked"])

    def sweep(self) -> int:
        """Kill every process below the server; how many there were.

        Raises:
            LaunchError: the server is gone; so is everything that was below it.
        """
        self._send({"sweep": True})
        report = self._wait_for("swept", _CLOSE_TIMEOUT_S)
        return int(report["swept"]) if report else 0

    def exits(self, wait_s: float) -> list[tuple[int, int]]:
        """Process id and exit status of ranks that ended, after at most `wait_s` seconds.

        Raises:
            LaunchError: the server is gone, or has not answered for long.
        """
        if not self._exits:
            self._read(wait_s)
            self._ping()
        ended = list(self._exits)
        self._exits.clear()
        return ended

    def close(self) -> None:
        """Have it kill everything below it and end; at once if it does not."""
        if self._process is None:
            return
        if not self._is_warm:
            # It imports, and so it neither listens nor has any rank below it.
            self._kill()
            return
        with contextlib.suppress(OSError):
            # Stopped from outside it would not see the end of its input.
            self._process.send_signal(signal.SIGCONT)
            if self._process.stdin is not None:
                self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_CLOSE_TIMEOUT_S)
        has_cleaned_up = self._process.returncode == 0
        self._kill(with_all_below=not has_cleaned_up)

    def _kill(self, *, with_all_below: bool = True) -> None:
        """End the process, which cannot do so itself, and whatever it left."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        if with_all_below and kill_marked(self._mark):
            remove_abandoned_locks()

    def _lose(self, how: str, kind: type[LaunchError] = LaunchError) -> LaunchError:
        """What to raise once the server is of no use any more; nothing below it is left."""
        self._kill()
        return kind(f"the trial server {how}; see {self._log}")

    def _send(self, request: dict[str, Any]) -> None:
        if self._process is None or self._process.stdin is None:
            raise LaunchError("the trial server is not running")
        try:
            os.write(self._process.stdin.fileno(), (json.dumps(request) + "\n").encode())
        except OSError as error:
            raise self._ended() from error

    def _wait_for(
        self,
        field: str,
        timeout_s: float,
        should_stop: Callable[[], str | None] = lambda: None,
    ) -> dict[str, Any] | None:
        """The next report with this field; ends of ranks that come before it are kept.

        None where `should_stop` had a reason first.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for report in self._read(_POLL_S):
                if field in report:
                    return report
            if should_stop():
                return None
        raise self._lose(f"did not answer in {timeout_s:.0f} s")

    def _ping(self) -> None:
        """Ask a silent server whether it still answers."""
        now = time.monotonic()
        if self._pinged_at is None:
            if now - self._heard_at > _PING_S:
                self._send({"ping": True})
                self._pinged_at = now
        elif now - self._pinged_at > _ANSWER_TIMEOUT_S:
            raise self._lose(f"did not answer in {_ANSWER_TIMEOUT_S:.0f} s")

    def _read(self, wait_s: float) -> list[dict[str, Any]]:
        """Reports that came in, after waiting for the first; ends of ranks are put aside."""
        if self._process is None or self._process.stdout is None:
            raise LaunchError("the trial server is not running")
        stdout = self._process.stdout.fileno()
        if not select.select([stdout], [], [], max(0.0, wait_s))[0]:
            if self._stopped.find([self._process.pid]) is not None:
                raise self._lose("was stopped from outside (SIGSTOP)", _KilledError)
            return []
        data = os.read(stdout, 65536)
        if not data:
            raise self._ended()
        self._heard_at, self._pinged_at = time.monotonic(), None
        *lines, self._pending = (self._pending + data).split(b"\n")
        reports = [json.loads(line) for line in lines]
        for report in reports:
            if "exited" in report:
                self._exits.append((report["exited"], report["status"]))
        return [report for report in reports if "exited" not in report]

    def _ended(self) -> LaunchError:
        """What to raise about a server that closed its end."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_ANSWER_TIMEOUT_S)
        status = self._process.returncode
        if status is not None and status < 0:
            return self._lose(f"was killed ({signal.Signals(-status).name})", _KilledError)
        return self._lose(f"ended with status {status}")


class _KilledError(LaunchError):
    """The server was killed or stopped from outside: another may fare better."""
