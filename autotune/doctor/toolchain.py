"""Checks of the tools that compile DeepSpeed's extensions, without compiling anything.

CPU Adam, which `offload_optimizer` needs, and asynchronous I/O, which offloading to NVMe needs,
are compiled at their first use and kept in torch's extensions folder. Does not know whether a
search wants them.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from autotune.doctor.check import Check, CheckStatus
from autotune.machine.extensions import (
    compiled_extension,
    extensions_folders,
    libaio_header,
    readable_architectures,
)

__all__ = ["examine_toolchain"]

_PURPOSE = "needed to compile CPU Adam for offload_optimizer"


def examine_toolchain() -> list[Check]:
    """Compiler, ninja, Python's headers, what is already built, and what spoils a build."""
    needed = [_compiler(), _ninja(), _python_headers()]
    can_compile = all(check.status is CheckStatus.OK for check in needed)
    return [
        *needed,
        _cpu_adam(can_compile=can_compile),
        _async_io(can_compile=can_compile),
        _architectures(),
    ]


def _compiler() -> Check:
    wanted = os.environ.get("CXX")
    found = shutil.which(wanted) if wanted else shutil.which("c++") or shutil.which("g++")
    if found:
        return Check.ok("C++ compiler", found)
    detail = f"CXX={wanted} is not on the PATH" if wanted else "not found on the PATH"
    remedy = "type: unset CXX" if wanted else "type: apt install g++"
    return Check.warning("C++ compiler", f"{detail}; {_PURPOSE}", remedy)


def _ninja() -> Check:
    """Torch runs `ninja` from the PATH; a virtual environment that is not activated hides it."""
    found = shutil.which("ninja")
    if found:
        return Check.ok("ninja program", found)
    hidden = Path(sys.executable).parent / "ninja"
    if hidden.is_file():
        return Check.warning(
            "ninja program",
            f"{hidden} is not on the PATH; {_PURPOSE}",
            f'type: export PATH="{hidden.parent}:$PATH"',
        )
    return Check.warning(
        "ninja program", f"not found on the PATH; {_PURPOSE}", "type: pip install ninja"
    )


def _python_headers() -> Check:
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if header.is_file():
        return Check.ok("Python headers", str(header))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Check.warning(
        "Python headers",
        f"{header} does not exist; {_PURPOSE}",
        f"type: apt install python{version}-dev",
    )


def _cpu_adam(*, can_compile: bool) -> Check:
    name = "CPU Adam"
    for folder in extensions_folders():
        lock = folder / "cpu_adam" / "lock"
        if lock.exists():
            # torch waits for this file for ever; a build that was killed leaves it behind.
            return Check.warning(
                name,
                f"{lock} exists: a build is running, or was killed",
                f"if no build is running, type: rm '{lock}'",
            )
        built = folder / "cpu_adam" / "cpu_adam.so"
        if built.is_file():
            return Check.ok(name, f"compiled: {built}")
    if can_compile:
        return Check.ok(
            name,
            "not compiled yet; the first use takes a minute; compile now: autotune doctor --build",
        )
    return Check.warning(
        name,
        "cannot be compiled; offload_optimizer cpu will not be tried",
        "see C++ compiler, ninja program and Python headers above",
    )


def _async_io(*, can_compile: bool) -> Check:
    """The library comes with its header only where its development package is installed."""
    name, lost = "async I/O", "offloading to NVMe will not be tried"
    header = libaio_header()
    if header is None:
        return Check.warning(
            name, f"libaio.h does not exist; {lost}", "type: apt install libaio-dev"
        )
    found = compiled_extension("async_io")
    if found is not None:
        return Check.ok(name, f"compiled: {found}")
    if can_compile:
        return Check.ok(name, f"{header} found; not compiled yet; the first use takes minutes")
    return Check.warning(
        name,
        f"{header} found, but cannot be compiled; {lost}",
        "see C++ compiler, ninja program and Python headers above",
    )


def _architectures() -> Check:
    """Whether DeepSpeed's extension builder can read the architectures that are set."""
    name = "TORCH_CUDA_ARCH_LIST"
    listed = os.environ.get(name, "")
    if not listed:
        return Check.ok(name, "not set; extensions are compiled for the GPU of this machine")
    plain = readable_architectures(listed)
    if plain == listed:
        return Check.ok(name, listed)
    return Check.warning(
        name,
        f"{listed}; the extension builder of DeepSpeed cannot read the letter",
        f"type: export {name}='{plain}'",
    )
