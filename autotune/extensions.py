"""The extensions that torch compiles at their first use and keeps: their place, their locks.

CPU Adam is one. Does not compile anything, and does not import torch.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

__all__ = ["extensions_folders", "remove_abandoned_locks"]


def extensions_folders() -> list[Path]:
    """Where torch keeps compiled extensions of this Python, one for each build of it."""
    chosen = os.environ.get("TORCH_EXTENSIONS_DIR")
    if chosen is not None:
        return [Path(chosen)]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    python = f"py{sys.version_info.major}{sys.version_info.minor}{getattr(sys, 'abiflags', '')}"
    return sorted((cache / "torch_extensions").glob(f"{python}_*"))


def remove_abandoned_locks() -> list[Path]:
    """Remove the locks of builds that were killed, for which torch would wait for ever.

    torch holds a lock's file open for as long as it builds or loads (`torch.utils.file_baton`), so
    a lock that no process has open is nobody's. Other users' locks are left alone.

    Returns:
        The locks that were removed.
    """
    locks = [lock for folder in extensions_folders() for lock in folder.glob("*/lock")]
    own = [lock for lock in locks if lock.exists() and lock.stat().st_uid == os.getuid()]
    if not own:
        return []
    held = _open_files()
    abandoned = [lock for lock in own if str(lock.resolve()) not in held]
    for lock in abandoned:
        lock.unlink(missing_ok=True)
    return abandoned


def _open_files() -> set[str]:
    """Paths of all files that processes which can be looked into have open."""
    import psutil

    found: set[str] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            found.update(file.path for file in process.open_files())
    return found
