"""Reads YAML 1.2 text into a pydantic model, and names the file and line of the first mistake.

Limits on size, depth, values and what aliases stand for hold before anything is built. Does not
know what the file means.
"""

from __future__ import annotations

import difflib
import io
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from autotune.errors import ConfigError
from autotune.names import visible
from autotune.text_file import load_text

__all__ = ["Section", "load_yaml", "nearest", "parse_yaml", "read_text"]

Location = tuple[int | str, ...]
"""The way to a value, as pydantic gives it: keys and indices from the top of the document."""

_LONGEST_VALUE = 60
"""Characters of a wrong value that a message shows."""

_LONGEST_MESSAGE = 600

_MOST_BYTES = 256 * 2**10
"""Fifty times the largest search space that comes along. ruamel.yaml is written in Python: of so
much it reads every form in half a second."""

_MOST_VALUES = 10_000
"""The most values of a file; an alias counts as all values that it stands for."""

_MOST_DEPTH = 32
"""The most levels of nested lists and mappings."""


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


def read_text(
    path: Path, name: str, *, if_missing: str = "", most_bytes: int = _MOST_BYTES
) -> str:
    """The text of a YAML file of the user's, or of another one.

    Args:
        path: where it is.
        name: what messages call it, such as `--space my.yaml`.
        if_missing: follows "no such file": what to do.
        most_bytes: it may have; a YAML file's if left out.

    Raises:
        ConfigError: there is none, it is no regular file, is too large, or cannot be read.
    """
    try:
        return load_text(path, most_bytes=most_bytes)
    except FileNotFoundError as error:
        raise ConfigError(f"{name}: no such file{if_missing}") from error
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
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
    tree = load_yaml(text, path)
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        line, message = _first_mistake(error, tree, model)
        raise ConfigError(f"{path}:{line}: {_shorten(message, _LONGEST_MESSAGE)}") from error


def load_yaml(text: str, path: str, *, keeps_last: bool = False) -> Any:
    """What the text says, with the line of each key.

    Args:
        text: the file's content.
        path: its name in messages.
        keeps_last: of a key that stands twice the last value counts, as for readers of YAML 1.1;
            else that is a mistake.

    Raises:
        ConfigError: it is beyond the limits, or not YAML.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    if len(text) > _MOST_BYTES:
        raise ConfigError(f"{path}: it has more than {_MOST_BYTES:,} characters")
    try:
        with warnings.catch_warnings():
            # Of YAML 1.1 and of anchors that are used twice, in lines of their own.
            warnings.simplefilter("ignore")
            _check_limits(text, path)
            # The round-trip loader is a safe loader of YAML 1.2 that knows each key's line.
            loader = YAML(typ="rt")
            if keeps_last:
                loader.Constructor = _keeping_last()
            return loader.load(text)
    except ConfigError:
        raise
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(
            f"{path}:{line}: not valid YAML: {visible(str(error.problem))}"
        ) from error
    except (YAMLError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"{path}: not valid YAML: {visible(reason)}") from error
    except Exception as error:  # the loader's own faults on what is no YAML
        raise ConfigError(f"{path}: not valid YAML: {type(error).__name__}") from error


def _keeping_last() -> type[Any]:
    from ruamel.yaml.constructor import RoundTripConstructor

    class KeepingLast(RoundTripConstructor):
        def check_mapping_key(self, *_: Any) -> bool:
            """Whether a key of a mapping is taken; one that is there already is written over."""
            return True

    return KeepingLast


def _check_limits(text: str, path: str) -> None:
    """Go through the parser's events, of which nothing is built.

    Raises:
        ConfigError: there are too many values, or they are too deep; the message has the line.
    """
    from ruamel.yaml import YAML

    extent = _Extent()
    for event in YAML(typ="rt").parse(io.StringIO(text)):
        extent.add(event)
        if extent.holds_itself:
            excess = "an alias within what it stands for, which never ends"
        elif extent.num_values > _MOST_VALUES:
            excess = f"more than {_MOST_VALUES:,} values, with all that aliases stand for"
        elif extent.depth > _MOST_DEPTH:
            excess = f"more than {_MOST_DEPTH} levels of lists and mappings"
        else:
            continue
        raise ConfigError(f"{path}:{event.start_mark.line + 1}: {excess}; write out what is meant")


class _Extent:
    """How many values a document has, and how deep they are, aliases expanded."""

    def __init__(self) -> None:
        self.num_values = 0
        self.depth = 0
        """Levels of nesting at the last event; an alias adds those of its value."""
        self.holds_itself = False
        """Whether an alias stood within what it stands for."""
        self._open: list[_Open] = []
        self._anchors: dict[str, tuple[int, int]] = {}
        """Values and levels of nesting of each anchor's value."""

    def add(self, event: Any) -> None:
        """Take in one of the parser's events."""
        from ruamel.yaml import events

        if isinstance(event, events.AliasEvent):
            self.holds_itself |= any(each.anchor == event.anchor for each in self._open)
            # One that is not known is the loader's to refuse.
            num_values, levels = self._anchors.get(event.anchor, (1, 0))
            self._count(num_values, levels)
        elif isinstance(event, events.ScalarEvent):
            self._count(1, 0)
            if event.anchor is not None:
                self._anchors[event.anchor] = (1, 0)
        elif isinstance(event, events.CollectionStartEvent):
            self._open.append(_Open(event.anchor, self.num_values))
            self._count(1, 0)
        elif isinstance(event, events.CollectionEndEvent):
            self._close()

    def _count(self, num_values: int, levels: int) -> None:
        self.num_values += num_values
        self.depth = len(self._open) + levels
        for place, each in enumerate(reversed(self._open)):
            each.levels = max(each.levels, place + 1 + levels)

    def _close(self) -> None:
        closed = self._open.pop()
        if closed.anchor is not None:
            self._anchors[closed.anchor] = (self.num_values - closed.before, closed.levels)


@dataclass(slots=True)
class _Open:
    """A list or mapping whose end has not come yet."""

    anchor: str | None
    before: int
    """Values of the document before it."""
    levels: int = 1
    """Lists and mappings in each other within it, itself among them."""


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
        except (AttributeError, KeyError, IndexError, TypeError):
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
        return f"{subject} must be a mapping with keys of {keys}; got {_show(value)}"
    rule = "needs at least one value" if kind == "too_short" else mistake["msg"]
    return f"{where}: {rule[0].lower()}{rule[1:]}, got {_show(value)}"


def _show(value: object) -> str:
    try:
        return _shorten(repr(value), _LONGEST_VALUE)
    except ValueError:  # of an integer with more digits than Python writes
        return "a number of thousands of digits"


def _shorten(text: str, longest: int) -> str:
    return visible(text if len(text) <= longest else f"{text[:longest]}...")


def _section(model: type[Section], location: Location) -> type[Section]:
    """The model of the section at a location."""
    for part in location:
        inner = model.model_fields[str(part)].annotation
        assert isinstance(inner, type)
        assert issubclass(inner, Section)
        model = inner
    return model
