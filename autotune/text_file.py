"""Reads a file that somebody else wrote, within limits: regular, of some size, not too deep.

The limits hold before anything is built of it. A pipe, a device or a folder is refused before it
is opened. Does not know what the file is about.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

__all__ = ["MOST_BYTES", "load_json", "load_text", "parse_json"]

MOST_BYTES = 4 * 2**20
"""The most bytes of a file. A configuration with 21,000 class labels has a quarter of it."""

_MOST_DEPTH = 64
"""The most levels of nested lists and mappings."""

_MOST_VALUES = 200_000

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}

_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
"""A string of JSON; one without an end reaches to the end of the text."""

_BRACKET = re.compile(r"[\[\]{}]")


def load_text(path: Path, *, most_bytes: int = MOST_BYTES) -> str:
    """The text of a regular file.

    Args:
        path: where it is.
        most_bytes: that it may have.

    Raises:
        OSError: there is none, it is no regular file, or it cannot be read.
        ValueError: it is too large, or not UTF-8.
    """
    _check_kind(path.stat().st_mode)
    # A pipe that has just taken the file's place would keep a plain open waiting.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        _check_kind(os.fstat(descriptor).st_mode)
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"it has more than {most_bytes:,} bytes, which no such file needs")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8: byte {error.start:,} is no text") from error


def _check_kind(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(f"it is {_KINDS.get(stat.S_IFMT(mode), 'something else')}, no regular file")


def load_json(path: Path, *, most_bytes: int = MOST_BYTES) -> Any:
    """What a file of JSON says.

    Raises:
        OSError: there is none, it is no regular file, or it cannot be read.
        ValueError: it is too large or too deep, or not JSON.
    """
    return parse_json(load_text(path, most_bytes=most_bytes))


def parse_json(text: str) -> Any:
    """What a text of JSON says.

    Raises:
        ValueError: it is too deep, has too many values, or is not JSON.
    """
    structure = _STRING.sub("", text)
    num_values = sum(map(structure.count, ",[{"))
    if num_values > _MOST_VALUES:
        raise ValueError(f"it has more than {_MOST_VALUES:,} values, which no such file needs")
    depth = 0
    for bracket in _BRACKET.finditer(structure):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > _MOST_DEPTH:
            raise ValueError(f"it is more than {_MOST_DEPTH} levels deep, which no such file is")
    return json.loads(text)
