"""What is declared of a knob beside its name, type and default: in the metadata of its field.

A knob that only sets a key of DeepSpeed needs a field of `Strategy`, its key in
`deepspeed_config.py`, and a line in a search space. Does not know which knobs there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from autotune.knob_values import LossClass

__all__ = ["MOST", "KnobFacts", "Needs", "facts_of", "knob"]

MOST = 2**40
"""Upper limit of any number of a strategy or workload: products of several are computed in 64
bit."""

_FACTS = "knob"

Default = TypeVar("Default")


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """Another knob that must have one of some values where this one is not at its default."""

    knob: str
    values: tuple[Any, ...]
    because: str = ""

    def broken(self, name: str, value: Any, other: Any) -> str | None:
        """The rule, the value and what to do, in words; None where it is kept."""
        if other in self.values:
            return None
        *most, last = map(_word, self.values)
        wanted = f"{', '.join(most)} or {last}" if most else last
        why = f": {self.because}" if self.because else ""
        return f"{name} {_word(value)} needs {self.knob} {wanted}, got {_word(other)}{why}"


@dataclass(frozen=True, kw_only=True, slots=True)
class KnobFacts:
    """What is known of one knob."""

    loss: LossClass
    """Whether it can change what is learned."""
    changing_values: tuple[Any, ...] = ()
    """Of a neutral knob, the values that change it all the same."""
    comment: str = ""
    """In `strategy.yaml`: which of an export's files puts it to work."""
    least: float = 1
    """The least number that it takes."""
    most: float = MOST
    """The greatest."""
    numbers: tuple[int, ...] = ()
    """All numbers that it takes, where these are few."""
    word: str | Callable[[Any], str] = ""
    """For table rows: what a value other than the default is called, with `{}` for the value, or
    a function of the whole strategy, which gives an empty text for nothing worth a word."""
    needs: Sequence[Needs] = ()

    def check_range(self, name: str, value: float) -> str | None:
        """Why the knob does not take a number, in words; None where it does."""
        if self.numbers and value not in self.numbers:
            *most, last = map(str, self.numbers)
            return f"{name} must be {', '.join(most)} or {last}, got {value}"
        if value < self.least:
            wanted = "0 or more" if self.least == 0 else f"at least {self.least}"
            return f"{name} must be {wanted}, got {value}"
        return None


def knob(default: Default, **facts: Any) -> Default:
    """A field of `Strategy` with its default; for `facts` see `KnobFacts`."""
    declared: Default = field(default=default, metadata={_FACTS: KnobFacts(**facts)})
    return declared


def facts_of(declared: Any) -> KnobFacts:
    """What is declared of a knob, by its field."""
    facts: KnobFacts = declared.metadata[_FACTS]
    return facts


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:,}" if isinstance(value, int) else str(value)
