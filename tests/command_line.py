"""Runs `autotune` as a user does: a process of its own, its streams and its exit status."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["autotune", "autotune_process"]


def _environment() -> dict[str, str]:
    return os.environ | {"DS_ACCELERATOR": "cpu", "PYTHONUNBUFFERED": "1"}


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
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def autotune_process(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    """Start the command and leave it running."""
    return subprocess.Popen(
        [sys.executable, "-m", "autotune", *arguments],
        cwd=folder,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
