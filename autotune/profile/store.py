"""Profiles and scripts on disk, so that each is traced once on a machine.

In the user's cache directory (`XDG_CACHE_HOME`), one JSON file each, named by the digest of
all that it depends on. Does not know how they are made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from autotune.drafts import write_file
from autotune.profile.model_profile import ModelProfile
from autotune.profile.script import AllocationScript

__all__ = ["read_profile", "read_script", "write_record"]

_Record = TypeVar("_Record")

_OWNERS_FILE = 0o600


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
        write_file(path, json.dumps(record.to_dict()), mode=_OWNERS_FILE)
    except OSError:
        return


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
