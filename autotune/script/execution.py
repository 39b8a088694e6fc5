"""Runs a training command in this process, as `python` would run it."""

from __future__ import annotations

import importlib
import os
import runpy
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from autotune.errors import ConfigError
from autotune.question.command import PROGRAM, CommandKind, TrainingCommand

__all__ = ["check_is_here", "execute"]


def check_is_here(command: TrainingCommand) -> None:
    """Refuse a command whose folder or file this host does not have.

    Raises:
        ConfigError: it lacks one; the message names host and path.
    """
    path = Path(command.folder)
    if command.kind is CommandKind.FILE:
        path /= command.target
    if not path.exists():
        raise ConfigError(
            f"{socket.gethostname()} has no {path}: script and data must lie under the same path "
            "on every node"
        )


def execute(command: TrainingCommand, arguments: Sequence[str], *, local_rank: int) -> None:
    """Run the command as `__main__` in its folder; returns when it does, and raises as it does.

    Args:
        command: what to run; its environment is set by whoever calls.
        arguments: with values in the place of its placeholders.
        local_rank: this rank's number on its host.
    """
    os.chdir(command.folder)
    words = list(arguments)
    if command.passes_local_rank:
        words.insert(0, f"--local_rank={local_rank}")
    if command.kind is CommandKind.FILE:
        path = Path(command.folder) / command.target
        sys.argv = [command.target, *words]
        # Python follows links for this; Accelerate's launcher adds the working folder behind it.
        sys.path.insert(0, str(path.resolve().parent))
        sys.path.append(os.getcwd())
        runpy.run_path(str(path), run_name="__main__")
        return
    # Python puts the working folder first where it runs a module.
    sys.path.insert(0, os.getcwd())
    if command.kind is CommandKind.MODULE:
        sys.argv = [command.target, *words]
        runpy.run_module(command.target, run_name="__main__", alter_sys=True)
        return
    module, _, function = command.target.partition(":")
    sys.argv = [os.environ.get(PROGRAM, module), *words]
    entry = importlib.import_module(module)
    for name in function.split("."):
        entry = getattr(entry, name)
    status = entry()  # type: ignore[operator]
    if status:
        raise SystemExit(status)
