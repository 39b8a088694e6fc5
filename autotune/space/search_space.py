"""A search space: knobs with their values, and the conditions under which they apply.

Does not know files or samplers: it lists strategies, and turns a choice of values into one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from autotune.errors import ConfigError
from autotune.knob_values import PARALLEL_DEGREES
from autotune.machine.hardware import Hardware
from autotune.machine.software import Software
from autotune.question.workload import Workload
from autotune.space.compatibility import conflict, rules
from autotune.space.drawing import draw_choices
from autotune.space.listing import Knob, Rule, Value, list_strategies
from autotune.space.own_training import reference_of
from autotune.space.strategy import KNOBS, RULES, Strategy, read_knob
from autotune.space.strategy_table import StrategyTable

__all__ = [
    "FACTS",
    "MOST_COMBINATIONS",
    "MOST_STRATEGIES",
    "NUM_DRAWN",
    "Knob",
    "SearchSpace",
    "Value",
]

FACTS = ("device", "method")
"""What a condition may ask besides other knobs: `device` is cpu or cuda, `method` the --method."""

MOST_COMBINATIONS = 2_000_000
"""Combinations of values that are still looked at one by one, as rows of a table."""

MOST_STRATEGIES = 20_000
"""Strategies that are still made one by one."""

NUM_DRAWN = 1_000
"""Combinations that are drawn from a larger space."""


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """The knobs that a search moves, for one question.

    Knobs that a file does not name keep the value of the reference strategy.
    """

    name: str
    """The file's stem."""
    knobs: tuple[Knob, ...]
    workload: Workload
    hardware: Hardware
    software: Software
    text: str = ""
    """The file as read; a study keeps a copy."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """Values of knobs that the user's own training has, in the place of the reference's."""

    @cached_property
    def reference(self) -> Strategy:
        """The strategy whose loss-changing knobs all others are compared with."""
        return reference_of(self.workload, self.hardware, self.own)

    @property
    def choices(self) -> dict[str, tuple[Value, ...]]:
        """Every value of every knob that is moved at all, by knob."""
        return {knob.name: knob.values for knob in self.knobs}

    def strategy(self, choice: Mapping[str, Value]) -> Strategy | None:
        """The strategy that a choice of values stands for; None where it is impossible.

        Knobs whose condition does not hold fall back to the reference, so several choices may
        stand for one strategy.
        """
        return self._possible(self._values_of(choice))

    def first_conflict(self) -> str | None:
        """Why all knobs at their first values are impossible, in words; None if they are not."""
        try:
            values = self._values_of({knob.name: knob.values[0] for knob in self.knobs})
            strategy = Strategy(**{name: values[name] for name in KNOBS})
        except ConfigError as error:
            return str(error)
        return self.conflict(strategy)

    def _values_of(self, choice: Mapping[str, Value]) -> dict[str, Any]:
        values = dict(self._fixed)
        for knob in self.knobs:
            if self._moves(knob, values):
                values[knob.name] = read_knob(knob.name, choice[knob.name])
        return values

    @cached_property
    def _fixed(self) -> dict[str, Any]:
        """What conditions may ask before any knob is moved: the reference, and the facts."""
        facts = {"device": str(self.hardware.device_type), "method": str(self.workload.method)}
        return {name: getattr(self.reference, name) for name in KNOBS} | facts

    @staticmethod
    def _moves(knob: Knob, values: Mapping[str, Any]) -> bool:
        return all(values[name] in allowed for name, allowed in knob.when.items())

    def conflict(self, strategy: Strategy) -> str | None:
        """Why the question does not allow this strategy, in words."""
        return conflict(strategy, self.workload, self.hardware, self.software)

    @cached_property
    def table(self) -> StrategyTable:
        """The possible strategies, each once: all of them, or of a huge space a fair part.

        A space of more than `MOST_COMBINATIONS` is not listed. `NUM_DRAWN` combinations are drawn
        then, the same ones every time.
        """
        listed = list_strategies(self._fixed, self._bounded, self._rules, most=MOST_COMBINATIONS)
        return StrategyTable.of(self._drawn) if listed is None else listed

    def strategies(self) -> Iterator[Strategy]:
        """The strategies of the table, or of more than `MOST_STRATEGIES` a fair part.

        `NUM_DRAWN` combinations are drawn of so many, as of what is not listed.
        """
        if len(self.table) > MOST_STRATEGIES:
            return iter(self._drawn)
        return map(self.table.strategy, range(len(self.table)))

    @cached_property
    def _drawn(self) -> tuple[Strategy, ...]:
        drawn = draw_choices(self._fixed, self._bounded, self._rules, number=NUM_DRAWN)
        return tuple(
            dict.fromkeys(Strategy(**{name: values[name] for name in KNOBS}) for values in drawn)
        )

    @property
    def _rules(self) -> tuple[Rule, ...]:
        return (*RULES, *rules(self.workload, self.hardware, self.software))

    def _possible(self, values: Mapping[str, Any]) -> Strategy | None:
        try:
            strategy = Strategy(**{name: values[name] for name in KNOBS})
        except ConfigError:
            return None
        return None if self.conflict(strategy) else strategy

    @cached_property
    def _bounded(self) -> tuple[Knob, ...]:
        """The knobs without parallel degrees that no number of ranks here can have."""
        ranks = self.hardware.num_devices
        bounded = []
        for knob in self.knobs:
            values = [read_knob(knob.name, value) for value in knob.values]
            if knob.name in PARALLEL_DEGREES:
                values = [degree for degree in values if ranks % degree == 0]
            bounded.append(replace(knob, values=tuple(values)))
        return tuple(bounded)
