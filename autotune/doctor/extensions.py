"""Compiles DeepSpeed's extensions ahead of time, so that no search pays for it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from autotune.launch.rank_environment import rank_environment
from autotune.lifeline import open_input
from autotune.machine.extensions import compiled_extension, libaio_header, remove_abandoned_locks
from autotune.machine.hardware import Hardware

__all__ = ["EXTENSIONS", "Extension", "compile_extensions"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Extension:
    """One that DeepSpeed compiles with torch."""

    name: str
    """The name of its folder and its library."""
    words: str
    builder: str
    """The class in `deepspeed.ops.op_builder`."""
    can_be_built: Callable[[], bool] = lambda: True
    """Whether its libraries are here."""


EXTENSIONS = (
    Extension(name="cpu_adam", words="CPU Adam", builder="CPUAdamBuilder"),
    Extension(
        name="async_io",
        words="async I/O",
        builder="AsyncIOBuilder",
        can_be_built=lambda: libaio_header() is not None,
    ),
)
"""Those that a strategy of ours may need."""


def compile_extensions(hardware: Hardware, say: Callable[[str], None]) -> bool:
    """Compile what is not compiled yet; whether all is there that can be.

    Args:
        hardware: this machine; its kind of device decides how they are compiled.
        say: told of each, in words.
    """
    remove_abandoned_locks()
    try:
        return all([_compile(extension, hardware, say) for extension in EXTENSIONS])
    finally:
        remove_abandoned_locks()


def _compile(extension: Extension, hardware: Hardware, say: Callable[[str], None]) -> bool:
    if compiled_extension(extension.name) is not None:
        say(f"{extension.words}: already compiled")
        return True
    if not extension.can_be_built():
        say(f"{extension.words}: skipped; its library is not installed")
        return True
    say(f"{extension.words}: compiling, takes about a minute…")
    started = time.monotonic()
    status, output = _run_builder(extension, hardware)
    seconds = time.monotonic() - started
    if status == 0:
        say(f"{extension.words}: compiled in {seconds:.0f} s")
        return True
    lines = [line for line in output.splitlines() if line.strip()] or ["no reason given"]
    errors = [line for line in lines if "error" in line.lower()]
    say(f"{extension.words}: did not compile: {(errors or lines)[-1].strip()}")
    return False


def _run_builder(extension: Extension, hardware: Hardware) -> tuple[int, str]:
    """The exit status and the errors of the process that compiles; its compilers end with it."""
    with (
        open_input() as stdin,
        subprocess.Popen(
            [sys.executable, "-m", "autotune.worker.extension", extension.builder],
            env=rank_environment(hardware),
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as builder,
    ):
        try:
            _, errors = builder.communicate()
        finally:
            _end_group(builder)
    return builder.returncode, errors


def _end_group(builder: subprocess.Popen[str]) -> None:
    """End it with its compilers, if it has not ended; they remove their temporary files."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(builder.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            builder.wait(timeout=1.0)
        os.killpg(builder.pid, signal.SIGKILL)
