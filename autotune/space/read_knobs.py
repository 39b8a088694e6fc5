"""Which knobs a function reads of a strategy, seen while it reads them, and answers kept by these.

A list of knobs by hand would give stale answers without a word once a function reads one more.
Does not know what is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from autotune.space.strategy import KNOBS, Strategy

__all__ = ["KnobReader", "ReadCache"]

Answer = TypeVar("Answer")

_KNOBS = frozenset(KNOBS)


class KnobReader(Strategy):
    """A strategy that notes which of its knobs are read; it is not checked.

    Args:
        value_of: gives a knob by its name.
    """

    # A slot that is not set is looked for by `__getattr__`; once set, it is read as any other.
    __slots__ = ("_value_of", "read")

    read: list[str]
    """The knobs that were read so far."""

    def __new__(cls, value_of: Callable[[str], Any]) -> KnobReader:
        """Without the knobs, which are looked up as they are read."""
        reader = object.__new__(cls)
        object.__setattr__(reader, "_value_of", value_of)
        object.__setattr__(reader, "read", [])
        return reader

    def __init__(self, value_of: Callable[[str], Any]) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name not in _KNOBS:
            raise AttributeError(name)
        value = self._value_of(name)
        object.__setattr__(self, name, value)
        self.read.append(name)
        return value


class ReadCache(Generic[Answer]):
    """Answers of a function of a strategy, each worked out once for the knobs that it reads.

    Args:
        function: of a strategy and of further hashable arguments, on which alone it depends.
    """

    def __init__(self, function: Callable[..., Answer]) -> None:
        self._function = function
        self._knobs: tuple[str, ...] = ()
        self._known: dict[tuple[Hashable, ...], Answer] = {}

    def __call__(self, strategy: Strategy, *others: Hashable) -> Answer:
        """The answer for this strategy."""
        key = self._key(strategy, others)
        if key not in self._known:
            reader = KnobReader(lambda name: getattr(strategy, name))
            answer = self._function(reader, *others)
            unknown = set(reader.read).difference(self._knobs)
            if unknown:
                # Answers so far lack the new knobs in their keys.
                self._known.clear()
                self._knobs = (*self._knobs, *sorted(unknown))
                key = self._key(strategy, others)
            self._known[key] = answer
        return self._known[key]

    def _key(self, strategy: Strategy, others: tuple[Hashable, ...]) -> tuple[Hashable, ...]:
        return (*others, *(getattr(strategy, knob) for knob in self._knobs))
