"""Profiles on disk, so that each is traced once on a machine.

In the user's cache directory (`XDG_CACHE_HOME`), one JSON file a profile, named by the digest of
all that it depends on. Does not know how a profile is made.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from autotune.profile.model_profile import ModelProfile

__all__ = ["read_profile", "write_profile"]


def read_profile(digest: str) -> ModelProfile | None:
    """The profile of that digest; None where there is none, or what there is cannot be read."""
    try:
        record = json.loads(_path(digest).read_text(encoding="utf-8"))
        return ModelProfile.from_dict(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_profile(digest: str, profile: ModelProfile) -> None:
    """Keep a profile, whole or not at all; where nothing can be written it is not kept."""
    path = _path(digest)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, suffix=".part", delete=False
        ) as file:
            json.dump(profile.to_dict(), file)
        os.replace(file.name, path)
    except OSError:
        return


def _path(digest: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification has relative paths ignored.
    root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return root / "autotune" / "profiles" / f"{digest}.json"
