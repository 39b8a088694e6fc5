"""Reads a file of another tool into plain keys and values: JSON, or YAML as that tool reads it.

Also finds the files that such a file names. Does not know what the keys mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autotune.errors import ConfigError
from autotune.names import visible
from autotune.text_file import parse_json
from autotune.yaml_file import load_yaml, read_text

__all__ = ["find_beside", "read_document"]

_MOST_PARENTS = 8
"""Folders above a file that are looked into for a file that it names."""


def read_document(path: Path, file: str) -> Mapping[Any, Any]:
    """The top level of a file.

    Args:
        path: where it is; `.json` is read as JSON, all else as YAML.
        file: its name in messages.

    Raises:
        ConfigError: there is none, it is no such file, or it holds no mapping.
    """
    text = read_text(path, file, if_missing="; give a configuration file")
    if path.suffix.lower() == ".json":
        try:
            tree = parse_json(text)
        except ValueError as error:
            raise ConfigError(f"{file}: not valid JSON: {visible(str(error))}") from error
    else:
        # As PyYAML, with which these tools read: of a key that stands twice the last one counts.
        tree = load_yaml(text, file, keeps_last=True)
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{file}: it must be a mapping of keys, and is none")
    return tree


def find_beside(name: str, path: Path) -> Path | None:
    """The file that another file names; None where there is none.

    Tools look from where they are started. So it is sought here, beside the file, and in the
    folders above it, which may be the tool's own.

    Args:
        name: as it stands in the file.
        path: the file in which it stands.
    """
    try:
        above = list(path.resolve().parents)[:_MOST_PARENTS]
        places = (Path(name), *(folder / name for folder in above))
        return next((place for place in places if place.is_file()), None)
    except (OSError, RuntimeError, ValueError):
        return None
