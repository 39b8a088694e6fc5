"""The keys of a file of another tool: each is checked where it is read, and unread ones are known.

Takes the ways of YAML 1.1, which those tools read: `yes` and `off` are truth values. Does not
know what a key means.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from autotune.errors import ConfigError
from autotune.names import visible

__all__ = ["AUTO", "MOST_RANK", "MOST_RANKS", "MOST_SAMPLES", "MOST_TOKENS", "Keys", "shown"]

AUTO = "auto"
"""The value that DeepSpeed's users write for "as my other settings say"."""

_MOST = 2**40
"""The greatest number that is read: products of several are computed in 64 bit."""

MOST_SAMPLES = 2**24
MOST_TOKENS = 2**27
MOST_RANK = 2**16
MOST_RANKS = 1_000_000
"""The greatest counts, as the options of the command line have them."""

_LONGEST_VALUE = 60
"""Characters of a wrong value that a message shows."""

_FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def shown(value: object) -> str:
    """A value of a file for a message: in one line, and not too long."""
    text = str(value)
    return visible(text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}...")


class Keys:
    """One mapping of a file.

    Args:
        tree: the mapping.
        file: the file's name in messages.
        path: the keys that lead to the mapping, each with a dot behind it.
    """

    def __init__(self, tree: Mapping[Any, Any], file: str, path: str = "") -> None:
        self._tree = {str(key): value for key, value in tree.items()}
        self.file = file
        self._path = path
        self._read: set[str] = set()
        self._sections: dict[str, Keys] = {}

    def __contains__(self, name: str) -> bool:
        """Whether a key is there and has a value."""
        return self._tree.get(name) is not None

    def value(self, name: str) -> Any:
        """The value of a key as it stands; None where it has none."""
        self._read.add(name)
        return self._tree.get(name)

    def is_auto(self, name: str) -> bool:
        """Whether a key is left to other settings."""
        return bool(self.value(name) == AUTO)

    def flag(self, name: str) -> bool | None:
        """A truth value; None where there is none, or `auto`.

        Raises:
            ConfigError: it is another kind of value.
        """
        value = self.value(name)
        if isinstance(value, str):
            value = _FLAGS.get(value.lower(), value)
        if value is None or value == AUTO:
            return None
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def count(self, name: str, *, least: int = 1, most: int = _MOST) -> int | None:
        """A whole number; None where there is none, or `auto`.

        Raises:
            ConfigError: it is another kind of value, or out of range.
        """
        number = self.number(name, least=least, most=most)
        if number is not None and not number.is_integer():
            raise self.wrong(name, "a whole number")
        return None if number is None else int(number)

    def number(self, name: str, *, least: float = 0.0, most: float = _MOST) -> float | None:
        """A number; None where there is none, or `auto`.

        Raises:
            ConfigError: it is another kind of value, or out of range.
        """
        value = self.value(name)
        if value is None or value == AUTO:
            return None
        try:
            # Text too: readers of YAML 1.1 take 5e8 for text, and convert it.
            number = math.nan if isinstance(value, bool) else float(value)
        except (OverflowError, TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise self.wrong(name, "a number")
        if not least <= number <= most:
            raise self.wrong(name, f"a number from {least:,} to {most:,}")
        return number

    def word(self, name: str) -> str | None:
        """A text; None where there is none. Of a truth value `true` or `false`.

        Raises:
            ConfigError: it is another kind of value.
        """
        value = self.value(name)
        if value is None or value == "":
            return None
        if isinstance(value, bool):
            return str(value).lower()
        if not isinstance(value, str):
            raise self.wrong(name, "text")
        return str(value)

    def words(self, name: str) -> tuple[str, ...]:
        """Several texts: a list, or one text with commas between them; empty where there is none.

        Raises:
            ConfigError: it is another kind of value.
        """
        value = self.value(name)
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",")]
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self.wrong(name, "text, or a list of texts")
        return tuple(str(each) for each in value if each)

    def section(self, name: str) -> Keys:
        """The mapping under a key; an empty one where there is none.

        Raises:
            ConfigError: it is another kind of value.
        """
        if name not in self._sections:
            value = self.value(name)
            tree = {} if value is None else value
            if not isinstance(tree, Mapping):
                raise self.wrong(name, "a mapping of keys")
            self._sections[name] = Keys(tree, self.file, f"{self._path}{name}.")
        return self._sections[name]

    def expect(self, name: str, *usual: Any) -> None:
        """Take a key for read if its value is what every strategy has, or is left to others."""
        if any(self._tree.get(name) == value for value in (None, AUTO, *usual)):
            self._read.add(name)

    def leave(self, name: str) -> None:
        """Count a key as not read, since its value means nothing here."""
        self._read.discard(name)

    def wrong(self, name: str, wanted: str) -> ConfigError:
        """The error about a value: names the file and the key, and says what it takes."""
        value = repr(self._tree.get(name))
        return ConfigError(f"{self.file}: {self._path}{name} takes {wanted}, got {shown(value)}")

    def unread(self) -> Iterator[str]:
        """The keys that have a value and were not read, with those that lead to them."""
        for name, value in self._tree.items():
            if name in self._sections:
                yield from self._sections[name].unread()
            elif value is not None and name not in self._read:
                yield shown(f"{self._path}{name}")
