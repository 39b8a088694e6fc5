"""Reads a model's config.json as plain values, within limits.

Does not know what its fields mean, except by their names how large a number may be.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from autotune.errors import ConfigError

__all__ = ["read_config_file", "shorten"]

_MAX_BYTES = 2 * 2**20
"""Those of language models have less than 0.1 MiB; labels of images make larger ones."""

_MAX_DEPTH = 32
"""Mappings and lists within each other; published ones have 4."""

_LIMITS = (
    (re.compile(r"(^|[._])(layers?|blocks|depth)$"), 500),
    (re.compile(r"(heads?|experts|groups?)$"), 2**17),
    (re.compile(r"(size|dim|width|rank|inner|ffn|embd|units|channels)$|(^|\.)d_\w+$"), 2**27),
)
"""The greatest whole number by the name of its field. Code of models makes one module, or one
entry of a list, for each layer and head, before anything of theirs could be refused."""

_LONGEST_VALUE = 60
"""Characters of a wrong value that a message shows."""


def read_config_file(path: Path, label: str) -> dict[str, Any]:
    """The fields of a config.json.

    Args:
        path: of the file.
        label: what messages call it, such as `--model my-model: config.json`.

    Raises:
        ConfigError: it is no file that can be read, no JSON object, names a field twice with
            different values, or has a value that no model has.
    """
    try:
        fields = json.loads(_read_text(path, label), object_pairs_hook=_Pairs)
    except RecursionError as error:
        raise ConfigError(f"{label} is nested deeper than {_MAX_DEPTH} levels") from error
    except ValueError as error:
        raise ConfigError(f"{label} cannot be read: it is not valid JSON: {error}") from error
    if not isinstance(fields, _Pairs):
        raise ConfigError(f"{label} must be a JSON object, got {shorten(fields)}")
    for name, value, depth in _walk(fields):
        fault = _fault(name, value, depth)
        if fault:
            raise ConfigError(f"{label}: {fault}")
    plain: dict[str, Any] = _plain(fields)
    return plain


def shorten(value: object) -> str:
    """A value on one line, as a message shows it."""
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


class _Pairs(dict[str, Any]):
    """A JSON object, and the names that it has twice with different values."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated = [name for name, value in pairs if _differ(self[name], value)]


def _plain(value: Any) -> Any:
    """A value with plain dicts and lists in place of subclasses of them."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _differ(one: Any, other: Any) -> bool:
    # NaN differs from itself; it is refused as such.
    return bool(one is not other and one != other)


def _read_text(path: Path, label: str) -> str:
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            content = file.read(_MAX_BYTES + 1) if _is_regular(file) else None
    except OSError as error:
        raise ConfigError(f"{label} cannot be read: {error.strerror or error}") from error
    if content is None:
        raise ConfigError(f"{label} is not a regular file")
    if len(content) > _MAX_BYTES:
        raise ConfigError(
            f"{label} is larger than {_MAX_BYTES // 2**20} MiB: it is not a model configuration"
        )
    if not content.strip():
        raise ConfigError(f"{label} is empty")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{label} cannot be read: it is not UTF-8: {error}") from error
    if text.startswith("\ufeff"):
        raise ConfigError(
            f"{label} begins with a byte order mark, which transformers cannot read; save it as "
            "UTF-8 without it"
        )
    return text


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting: a FIFO would have its reader wait for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def _is_regular(file: BinaryIO) -> bool:
    return stat.S_ISREG(os.fstat(file.fileno()).st_mode)


def _walk(fields: _Pairs) -> Iterator[tuple[str, Any, int]]:
    """Every value with its field's name and its depth, outermost first."""
    waiting: deque[tuple[str, Any, int]] = deque([("", fields, 0)])
    while waiting:
        name, value, depth = waiting.popleft()
        yield name, value, depth
        if depth > _MAX_DEPTH:
            return
        if isinstance(value, dict):
            prefix = f"{name}." if name else ""
            waiting += [(f"{prefix}{key}", inner, depth + 1) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{name}[{i}]", inner, depth + 1) for i, inner in enumerate(value)]


def _fault(name: str, value: Any, depth: int) -> str | None:
    """Why a field cannot have this value, in words."""
    field = _printable(name)
    if isinstance(value, _Pairs) and value.repeated:
        twice = _printable(f"{name}.{value.repeated[0]}".lstrip("."))
        return f"{twice} appears twice, with different values"
    if depth > _MAX_DEPTH:
        return f"{field} is nested deeper than {_MAX_DEPTH} levels"
    if isinstance(value, float) and (math.isnan(value) or _is_endless(name, value)):
        return f"{field} must be a number, got {value}"
    if isinstance(value, int) and not isinstance(value, bool):
        limit = next((most for words, most in _LIMITS if words.search(name)), 2**63 - 1)
        if abs(value) > limit:
            return f"{field} must be at most {limit}, got {shorten(value)}"
    return None


def _is_endless(name: str, value: float) -> bool:
    """Infinity, but for the open end of a range (`time_step_limit` of Mamba 2)."""
    return math.isinf(value) and not name.endswith("]")


def _printable(name: str) -> str:
    """A name of the user's, safe on a terminal."""
    return name if name.isascii() and name.isprintable() and len(name) < 100 else shorten(name)
