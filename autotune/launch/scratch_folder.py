"""A temporary folder that is gone with its owner: at its end, or with the next one of its kind.

Its owner holds a lock on it, which the kernel lets go of when the owner dies. Does not know what
is kept in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

__all__ = ["ScratchFolder"]


class ScratchFolder:
    """A folder of one process; the name begins with `autotune-` and its kind.

    Args:
        kind: what it is for; abandoned ones of this kind beside it are removed first.
        parent: where it is made; the system's place for temporary files if left out.

    Raises:
        OSError: no folder can be made there.
    """

    def __init__(self, kind: str, parent: Path | None = None) -> None:
        parent = parent or Path(tempfile.gettempdir())
        prefix = f"autotune-{kind}-"
        for folder in parent.glob(f"{prefix}*"):
            _remove_if_abandoned(folder)
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            lock = os.open(self.path, os.O_RDONLY)
            # On a file system without locks nobody else gets one either: nobody removes it.
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            if self.path.exists():
                break
            # Another process took it for abandoned before it had its lock.
            os.close(lock)
        self._lock: int | None = lock

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove it with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _remove_if_abandoned(folder: Path) -> None:
    """Remove a folder of this user that no living process holds."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        if os.fstat(lock).st_uid == os.getuid():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        # It is held, or the file system has no locks.
        pass
    finally:
        os.close(lock)
