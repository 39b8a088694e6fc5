"""Draws combinations of the values of knobs, of a space that is too large to be listed.

Does not know where knobs and rules come from, nor how many combinations there are.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from autotune.space.listing import Knob, Rule
from autotune.space.read_knobs import KnobReader

__all__ = ["draw_choices"]


def draw_choices(
    fixed: Mapping[str, Any], knobs: Sequence[Knob], rules: Sequence[Rule], *, number: int
) -> Iterator[dict[str, Any]]:
    """Knob by knob a value at random, of those that are possible after the ones before it.

    The same combinations every time, in the same order; some may be equal.

    Args:
        fixed: the value of every knob where it is not moved, and of facts that conditions ask.
        knobs: what is moved, in the order in which conditions look back.
        rules: what makes a strategy impossible.
        number: combinations that are drawn.

    Yields:
        Values of possible strategies alone.
    """
    draw = random.Random(0)
    asked = [_AskedRule(rule) for rule in rules]
    start = _Choice.of(dict(fixed), asked)
    for _ in range(number):
        choice = start
        for knob in knobs:
            if all(choice.values[name] in allowed for name, allowed in knob.when.items()):
                order = draw.sample(knob.values, len(knob.values))
                choice = choice.moved_to_first_possible(knob.name, order, asked)
        if choice.is_possible:
            yield choice.values


class _AskedRule:
    """A rule, and its answers so far: a tree of the knobs in the order in which it reads them."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._root: dict[Any, Any] = {}

    def read(self, values: Mapping[str, Any]) -> frozenset[str] | None:
        """The knobs that it reads of these values; None where it is against them."""
        node = self._root
        while _KNOB in node:
            value = values[node[_KNOB]]
            if value not in node:
                break
            node = node[value]
        if _ANSWER not in node:
            self._ask(values)
            return self.read(values)
        answer: frozenset[str] | None = node[_ANSWER]
        return answer

    def _ask(self, values: Mapping[str, Any]) -> None:
        row = KnobReader(values.__getitem__)
        is_broken = bool(self._rule(row))
        node = self._root
        for knob in row.read:
            node[_KNOB] = knob
            node = node.setdefault(values[knob], {})
        node[_ANSWER] = None if is_broken else frozenset(row.read)


class _Key(Enum):
    """What a node of the tree holds beside the nodes below it, which are by value."""

    KNOB = auto()
    ANSWER = auto()


_KNOB, _ANSWER = _Key.KNOB, _Key.ANSWER


@dataclass(frozen=True, kw_only=True, slots=True)
class _Choice:
    """A choice of values, and which knobs each rule reads of it."""

    values: dict[str, Any]
    read: tuple[frozenset[str], ...] | None
    """One set for each rule; None where a rule is against the choice."""

    @property
    def is_possible(self) -> bool:
        return self.read is not None

    @classmethod
    def of(
        cls, values: dict[str, Any], rules: Sequence[_AskedRule], known: Sequence[Any] = ()
    ) -> _Choice:
        """Ask the rules, but not those of which is known what they read and that they allow it."""
        read = []
        for number, rule in enumerate(rules):
            names = known[number] if known else None
            if names is None:
                names = rule.read(values)
                if names is None:
                    return cls(values=values, read=None)
            read.append(names)
        return cls(values=values, read=tuple(read))

    def moved_to_first_possible(
        self, name: str, order: Sequence[Any], rules: Sequence[_AskedRule]
    ) -> _Choice:
        """One knob moved to the first value that is possible, or stands; the first if none is."""
        # Of others the answers stand: a rule that has not read a knob does not depend on it.
        known = [None if name in names else names for names in self.read or ()]
        moved = []
        for value in order:
            if value == self.values[name]:
                return self
            moved.append(_Choice.of(self.values | {name: value}, rules, known))
            if moved[-1].is_possible:
                return moved[-1]
        return moved[0]
