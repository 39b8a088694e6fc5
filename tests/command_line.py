"""Runs `autotune` as a user does: a process of its own, its streams and its exit status."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

from autotune.cli import main
from autotune.launch.launcher import Launcher

__all__ = ["autotune", "autotune_here", "autotune_process", "searching_with"]


def _environment(folder: Path) -> dict[str, str]:
    """Of a user who has configured nothing yet."""
    own = {"DS_ACCELERATOR": "cpu", "PYTHONUNBUFFERED": "1"}
    return os.environ | own | {"XDG_CONFIG_HOME": str(folder / ".config")}


def autotune(
    *arguments: str, folder: Path, timeout_s: float = 240
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end.

    Args:
        *arguments: the command line.
        folder: its working directory.
        timeout_s: when to give up.
    """
    return subprocess.run(
        [sys.executable, "-m", "autotune", *arguments],
        cwd=folder,
        env=_environment(folder),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def autotune_here(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The same in this process, which has the imports behind it: for what is refused at once."""
    out, err = io.StringIO(), io.StringIO()
    status: object = 0
    with (
        chdir(folder),
        patch.dict(os.environ, _environment(folder)),
        patch.object(sys, "argv", ["autotune", *arguments]),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            status = end.code
    assert isinstance(status, int)
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


@contextmanager
def searching_with(launcher: Launcher) -> Iterator[None]:
    """Searches of this process fork their trials from the server of a launcher that is warm.

    Trials are real. What is spared is to load the libraries for each search, six seconds.
    """
    server = launcher._server

    class Kept:
        """The server as a search has it, which neither starts nor ends it."""

        def __init__(self, **_: object) -> None:
            pass

        def start(self, should_stop: Callable[[], str | None]) -> float | None:
            return 0.1 if server.is_alive else server.start(should_stop)

        def close(self) -> None:
            pass

        def fork(self, *, spec: Path, folder: Path, **others: Any) -> int | None:
            # A search's own server runs where the search does.
            return server.fork(spec=spec.absolute(), folder=folder.absolute(), **others)

        def __getattr__(self, name: str) -> Any:
            return getattr(server, name)

    with patch("autotune.launch.launcher.ServerProcess", Kept):
        yield


def autotune_process(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    """Start the command and leave it running."""
    return subprocess.Popen(
        [sys.executable, "-m", "autotune", *arguments],
        cwd=folder,
        env=_environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
