"""Rows of a table of correspondence: a key of a file, the knob it stands for, and both ways.

A tool's reader and its writer take their keys from the same rows. Does not know the tools.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from autotune.foreign.keys import AUTO, MOST_SAMPLES, Keys
from autotune.space.strategy import Strategy

__all__ = ["Count", "Flag", "Named", "Row", "read_rows", "write_rows"]


class Row(Protocol):
    """One fact: which key stands for which knob."""

    def read(self, keys: Keys) -> dict[str, Any]:
        """The knobs that the keys say, by name; those that nothing is said of are left out."""
        ...

    def write(self, strategy: Strategy) -> dict[str, Any]:
        """The keys that say the knob's value; empty where it is what the tool does anyway."""
        ...


@dataclass(frozen=True, slots=True)
class Count:
    """A whole number."""

    knob: str
    key: str
    older: Sequence[str] = ()
    """Names of the key in earlier versions of the tool."""
    omits: int | None = None
    """The value that is not written, since it is the tool's own."""
    most: int = MOST_SAMPLES

    def read(self, keys: Keys) -> dict[str, Any]:
        """See `Row`."""
        found = [
            number
            for key in (self.key, *self.older)
            if (number := keys.count(key, most=self.most))
        ]
        return {self.knob: found[0]} if found else {}

    def write(self, strategy: Strategy) -> dict[str, Any]:
        """See `Row`."""
        value = getattr(strategy, self.knob)
        return {} if value == self.omits else {self.key: value}


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""

    knob: str
    key: str
    older: Sequence[str] = ()

    def read(self, keys: Keys) -> dict[str, Any]:
        """See `Row`."""
        found = [flag for key in (self.key, *self.older) if (flag := keys.flag(key)) is not None]
        return {self.knob: any(found)} if found else {}

    def write(self, strategy: Strategy) -> dict[str, Any]:
        """See `Row`."""
        return {self.key: True} if getattr(strategy, self.knob) else {}


@dataclass(frozen=True, slots=True)
class Named:
    """One of several words. A word that is not known stays unread."""

    knob: str
    key: str
    words: Mapping[str, Any]
    """The knob's value for each word; the first word of a value is written."""

    def read(self, keys: Keys) -> dict[str, Any]:
        """See `Row`."""
        word = keys.word(self.key)
        if word in (None, AUTO):
            return {}
        if word not in self.words:
            keys.leave(self.key)
            return {}
        return {self.knob: self.words[word]}

    def write(self, strategy: Strategy) -> dict[str, Any]:
        """See `Row`."""
        value = getattr(strategy, self.knob)
        word = next((word for word, meant in self.words.items() if meant == value), None)
        return {} if word is None else {self.key: word}


def read_rows(rows: Sequence[Row], keys: Keys) -> dict[str, Any]:
    """The knobs that keys say, by the rows of their tool.

    Raises:
        ConfigError: a key has a value of another kind.
    """
    knobs: dict[str, Any] = {}
    for row in rows:
        knobs |= row.read(keys)
    return knobs


def write_rows(rows: Sequence[Row], strategy: Strategy) -> dict[str, Any]:
    """The keys that say a strategy, by the rows of a tool."""
    keys: dict[str, Any] = {}
    for row in rows:
        keys |= row.write(strategy)
    return keys
