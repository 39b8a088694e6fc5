"""Profiles and scripts on disk, so that each is traced once on a machine.

In the user's cache directory (`XDG_CACHE_HOME`), one JSON file each, named by the digest of
all that it depends on. Does not know how they are made.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from autotune.profile.model_profile import ModelProfile
from autotune.profile.script import AllocationScript

__all__ = ["read_profile", "read_script", "write_record"]

_Record = TypeVar("_Record")


def read_profile(digest: str) -> ModelProfile | None:
    """The profile of that digest; None where there is none, or what there is cannot be read."""
    return _read(digest, ModelProfile.from_dict)


def read_script(digest: str) -> AllocationScript | None:
    """As `read_profile`, the script of that digest."""
    return _read(digest, AllocationScript.from_dict)


def write_record(digest: str, record: ModelProfile | AllocationScript) -> None:
    """Keep it, whole or not at all; where nothing can be written it is not kept."""
    path = _path(digest)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(path, json.dumps(record.to_dict()).encode())
    except OSError:
        return


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file that has no name until it is whole, so that a kill leaves no draft behind.

    Where the file system knows no such files, it has a draft's name until then.
    """
    try:
        descriptor = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY, 0o600)
    except OSError:
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as draft:
            draft.write(data)
        os.replace(draft.name, path)
        return
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        # What is there could not be read, or is the same.
        path.unlink(missing_ok=True)
        # Python follows the link, which stands for the file, only beside an open folder.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.link(f"/proc/self/fd/{descriptor}", path.name, dst_dir_fd=folder)
        finally:
            os.close(folder)


def _read(digest: str, read: Callable[[Mapping[str, Any]], _Record]) -> _Record | None:
    try:
        return read(json.loads(_path(digest).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _path(digest: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification has relative paths ignored.
    root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return root / "autotune" / "profiles" / f"{digest}.json"
