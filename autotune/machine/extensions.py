"""The extensions that torch compiles at their first use and keeps: their folders, their locks.

CPU Adam is one. Does not compile anything, and does not import torch.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from pathlib import Path

__all__ = [
    "UNUSED_EXTENSIONS",
    "compiled_extension",
    "cuda_toolkit",
    "extensions_folders",
    "libaio_header",
    "readable_architectures",
    "remove_abandoned_locks",
]

UNUSED_EXTENSIONS = ("deepspeed_shm_comm",)
"""Extensions that DeepSpeed compiles when CPU ranks meet, with forty seconds and more of g++:
a shared-memory all-reduce for inference, which training does not call."""

_INCLUDE_VARIABLES = ("CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH")
"""Folders that GCC looks for headers in before the system's."""


def extensions_folders() -> list[Path]:
    """Where torch keeps compiled extensions of this Python, one for each build of it."""
    chosen = os.environ.get("TORCH_EXTENSIONS_DIR")
    if chosen is not None:
        return [Path(chosen)]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    python = f"py{sys.version_info.major}{sys.version_info.minor}{getattr(sys, 'abiflags', '')}"
    return sorted((cache / "torch_extensions").glob(f"{python}_*"))


def compiled_extension(name: str) -> Path | None:
    """The library of an extension of that name, where it is there to be loaded."""
    libraries = (folder / name / f"{name}.so" for folder in extensions_folders())
    return next((library for library in libraries if library.is_file()), None)


def readable_architectures(listed: str) -> str:
    """TORCH_CUDA_ARCH_LIST as DeepSpeed's extension builder can read it.

    It takes each architecture for a number, and fails on 9.0a.
    """
    return re.sub(r"(\d+\.\d+)[a-z]+", r"\1", listed)


def libaio_header() -> Path | None:
    """Where libaio's header is, which DeepSpeed's asynchronous I/O is compiled with.

    Looked for where the compiler looks, and in `-I` of CFLAGS, which DeepSpeed hands on.
    """
    folders = [
        folder
        for variable in _INCLUDE_VARIABLES
        for folder in os.environ.get(variable, "").split(os.pathsep)
    ]
    flags = os.environ.get("CFLAGS", "").split()
    folders += [flag.removeprefix("-I") for flag in flags if flag.startswith("-I")]
    folders += ["/usr/local/include", "/usr/include"]
    headers = (Path(folder) / "libaio.h" for folder in folders if folder)
    return next((header for header in headers if header.is_file()), None)


def cuda_toolkit() -> Path | None:
    """The CUDA toolkit that torch compiles extensions with: found as torch does."""
    chosen = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    compiler = shutil.which("nvcc")
    if chosen is None and compiler is not None:
        return Path(compiler).resolve().parent.parent
    toolkit = Path(chosen or "/usr/local/cuda")
    return toolkit if (toolkit / "bin" / "nvcc").is_file() else None


def remove_abandoned_locks(dying: int | None = None) -> list[Path]:
    """Remove the locks of builds that were killed, for which torch would wait for ever.

    torch holds a lock's file open for as long as it builds or loads (`torch.utils.file_baton`), so
    a lock that no process has open is nobody's. Other users' locks are left alone.

    Args:
        dying: a process that is about to end, whose locks count as abandoned.

    Returns:
        The locks that were removed.
    """
    locks = [lock for folder in extensions_folders() for lock in folder.glob("*/lock")]
    own = [lock for lock in locks if lock.exists() and lock.stat().st_uid == os.getuid()]
    if not own:
        return []
    held = _open_files(but_of=dying)
    abandoned = [lock for lock in own if str(lock.resolve()) not in held]
    for lock in abandoned:
        lock.unlink(missing_ok=True)
    return abandoned


def _open_files(but_of: int | None) -> set[str]:
    """Paths of all files that processes have open which can be looked into, but for one."""
    import psutil

    found: set[str] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid == but_of:
                continue
            found.update(file.path for file in process.open_files())
    return found
