"""The launcher's end of the warm server: starts it, speaks its lines, notices its death."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from autotune.errors import LaunchError, StorageError

__all__ = ["ServerProcess"]

_START_TIMEOUT_S = 300.0
_ANSWER_TIMEOUT_S = 30.0
_POLL_S = 0.1


class ServerProcess:
    """One process of `worker/server.py`.

    Args:
        model_type: the architecture to import before the first fork.
        environment: its whole environment.
        log: file for whatever it and the libraries print.
    """

    def __init__(self, *, model_type: str, environment: dict[str, str], log: Path) -> None:
        self._model_type = model_type
        self._environment = environment
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._is_warm = False
        self._pending = b""
        self._exits: deque[tuple[int, int]] = deque()

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def start(self, should_stop: Callable[[], str | None] = lambda: None) -> float | None:
        """Start it and wait until its imports are done; the seconds they took.

        Args:
            should_stop: asked while it imports; a sentence ends the wait, and None is returned.

        Raises:
            LaunchError: it ended or did not become ready; the message names its log.
        """
        self.close()
        self._pending = b""
        self._exits.clear()
        self._is_warm = False
        with self._opened_log() as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "autotune.worker.server", self._model_type],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                reports = self._read(_POLL_S)
            except LaunchError:
                # A Ctrl-C that comes before it has a session of its own ends it too.
                if should_stop():
                    return None
                raise
            for report in reports:
                if "ready" in report:
                    self._is_warm = True
                    return float(report["ready"])
            if should_stop():
                return None
        raise LaunchError(f"the trial server did not start; see {self._log}")

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
    ) -> int:
        """Fork one rank; its process id, which is also its process group's.

        Args:
            rank: which rank.
            spec: the trial, as JSON.
            folder: for its output.
            env: what its environment has beside the server's.
            swap_folder: to be removed by the server should it outlive its launcher.

        Raises:
            LaunchError: the server is gone or cannot fork.
        """
        request = {"rank": rank, "spec": str(spec), "folder": str(folder), "env": env}
        if swap_folder is not None:
            request["swap_folder"] = str(swap_folder)
        self._send({"fork": request})
        return int(self._wait_for("forked", _ANSWER_TIMEOUT_S)["forked"])

    def sweep(self) -> int:
        """Kill every process below the server; how many there were.

        Raises:
            LaunchError: the server is gone.
        """
        self._send({"sweep": True})
        return int(self._wait_for("swept", _ANSWER_TIMEOUT_S)["swept"])

    def exits(self, wait_s: float) -> list[tuple[int, int]]:
        """Process id and exit status of ranks that ended, after at most `wait_s` seconds.

        Raises:
            LaunchError: the server is gone.
        """
        if not self._exits:
            self._read(wait_s)
        ended = list(self._exits)
        self._exits.clear()
        return ended

    def close(self) -> None:
        """Have it kill everything below it and end; at once if it does not."""
        if self._process is None:
            return
        if not self._is_warm:
            # It imports, and so it neither listens nor has anything below it.
            self._process.kill()
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None

    def _send(self, request: dict[str, Any]) -> None:
        if self._process is None or self._process.stdin is None:
            raise LaunchError("the trial server is not running")
        try:
            os.write(self._process.stdin.fileno(), (json.dumps(request) + "\n").encode())
        except OSError as error:
            raise LaunchError(f"the trial server is gone; see {self._log}") from error

    def _wait_for(self, field: str, timeout_s: float) -> dict[str, Any]:
        """The next report with this field; ends of ranks that come before it are kept."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for report in self._read(deadline - time.monotonic()):
                if field in report:
                    return report
        raise LaunchError(f"the trial server did not answer in {timeout_s:.0f} s; see {self._log}")

    def _read(self, wait_s: float) -> list[dict[str, Any]]:
        """Reports that came in, after waiting for the first; ends of ranks are put aside."""
        if self._process is None or self._process.stdout is None:
            raise LaunchError("the trial server is not running")
        stdout = self._process.stdout.fileno()
        if not select.select([stdout], [], [], max(0.0, wait_s))[0]:
            return []
        data = os.read(stdout, 65536)
        if not data:
            self._process.kill()
            self._process.wait()
            raise LaunchError(f"the trial server ended; see {self._log}")
        *lines, self._pending = (self._pending + data).split(b"\n")
        reports = [json.loads(line) for line in lines]
        for report in reports:
            if "exited" in report:
                self._exits.append((report["exited"], report["status"]))
        return [report for report in reports if "exited" not in report]
