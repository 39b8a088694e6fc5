"""A YAML 1.2 text read into a pydantic model, its first mistake named by file and line.

Does not know what the file means.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from autotune.errors import ConfigError

__all__ = ["Section", "nearest", "parse_yaml", "read_text"]

Location = tuple[int | str, ...]
"""The way to a value, as pydantic gives it: keys and indices from the top of the document."""

_LONGEST_VALUE = 60
"""Characters of a wrong value that a message shows."""


class Section(BaseModel):
    """One mapping of a file; refuses keys that it does not have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    unknown_key: ClassVar[str] = "unknown key"
    """How a message calls a key that the section does not have."""


Document = TypeVar("Document", bound=Section)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a mis-spelt name: the nearest known one, or else all of them."""
    known = tuple(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"


def read_text(path: Path, name: str, *, if_missing: str) -> str:
    """The text of a file of the user's.

    Args:
        path: where it is.
        name: what messages call it, such as `--space my.yaml`.
        if_missing: follows "no such file": what to do.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{name}: no such file{if_missing}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: cannot be read: {error}") from error


def parse_yaml(text: str, path: str, model: type[Document]) -> Document:
    """Read a document and check it.

    Args:
        text: the file's content.
        path: its name in messages.
        model: what the document must look like.

    Raises:
        ConfigError: not YAML, or not as the model wants it; the message has file and line.
    """
    tree = _load(text, path)
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        line, message = _first_mistake(error, tree, model)
        raise ConfigError(f"{path}:{line}: {message}") from error


def _load(text: str, path: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        # The round-trip loader is a safe loader of YAML 1.2 that knows each key's line.
        return YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not valid YAML: {error.problem}") from error
    except (YAMLError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"{path}: not valid YAML: {reason}") from error


def _first_mistake(error: ValidationError, tree: Any, model: type[Section]) -> tuple[int, str]:
    """Line and description of one mistake: a mis-spelt key if any, else the topmost."""
    _, line, worst = min(
        (mistake["type"] != "extra_forbidden", _line(tree, mistake["loc"]), index)
        for index, mistake in enumerate(error.errors())
    )
    return line, _describe(error.errors()[worst], model)


def _line(tree: Any, location: Location) -> int:
    """Line of the innermost part of the location that the file has; others are passed over."""
    line, node = 1, tree
    for part in location:
        try:
            if isinstance(node, dict):
                line, node = node.lc.key(part)[0] + 1, node[part]  # type: ignore[attr-defined]
            elif isinstance(node, list):
                line, node = node.lc.item(part)[0] + 1, node[part]  # type: ignore
        except (KeyError, IndexError, TypeError):
            continue
    return line


def _describe(mistake: Mapping[str, Any], model: type[Section]) -> str:
    """What is wrong and what to do, in words."""
    location: Location = mistake["loc"]
    kind, value = mistake["type"], mistake["input"]
    if kind == "value_error":
        return str(mistake["ctx"]["error"])
    where = ".".join(str(part) for part in location)
    if kind in ("extra_forbidden", "missing"):
        *outer, key = location
        prefix = "".join(f"{part}." for part in outer).removesuffix(".")
        prefix = prefix and f"{prefix}: "
        if kind == "missing":
            return f"{prefix}the key `{key}` is missing"
        section = _section(model, tuple(outer))
        hint = nearest(str(key), section.model_fields)
        return f"{prefix}{section.unknown_key} {key!r}; {hint}"
    if kind in ("model_type", "model_attributes_type"):
        keys = ", ".join(_section(model, location).model_fields)
        subject = where or "the file"
        return f"{subject} must be a mapping with keys of {keys}; got {_shorten(value)}"
    rule = "needs at least one value" if kind == "too_short" else mistake["msg"]
    return f"{where}: {rule[0].lower()}{rule[1:]}, got {_shorten(value)}"


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _section(model: type[Section], location: Location) -> type[Section]:
    """The model of the section at a location."""
    for part in location:
        inner = model.model_fields[str(part)].annotation
        assert isinstance(inner, type)
        assert issubclass(inner, Section)
        model = inner
    return model
