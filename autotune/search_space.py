"""The strategies that a search may try: knobs with their values, and when they apply.

Does not know files or samplers: it lists strategies, and turns a choice of values into one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from autotune.compatibility import conflict, reference_strategy
from autotune.errors import ConfigError
from autotune.hardware import Hardware
from autotune.software import Software
from autotune.strategy import Strategy
from autotune.workload import Workload

__all__ = ["FACTS", "Knob", "SearchSpace", "Value"]

Value = int | float | bool | str
"""A value of a knob, as a file and the storage hold it."""

FACTS = ("device", "method")
"""What a condition may ask besides other knobs: `device` is cpu or cuda, `method` the --method."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Knob:
    """One knob of a search space."""

    name: str
    values: tuple[Value, ...]
    """All values that may be tried."""
    when: Mapping[str, tuple[Value, ...]]
    """It is only moved where each named knob or fact has one of these values; else it keeps its
    reference value."""


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

    @cached_property
    def reference(self) -> Strategy:
        """The strategy whose loss-changing knobs all others are compared with."""
        return reference_strategy(self.workload, self.hardware)

    @property
    def choices(self) -> dict[str, tuple[Value, ...]]:
        """Every value of every knob that is moved at all, by knob."""
        return {knob.name: knob.values for knob in self.knobs}

    def strategy(self, choice: Mapping[str, Value]) -> Strategy | None:
        """The strategy that a choice of values stands for; None where it is impossible.

        Knobs whose condition does not hold fall back to the reference, so several choices may
        stand for one strategy.
        """
        try:
            strategy = self._strategy_of(choice)
        except ConfigError:
            return None
        return None if self.conflict(strategy) else strategy

    def first_conflict(self) -> str | None:
        """Why all knobs at their first values are impossible, in words; None if they are not."""
        try:
            strategy = self._strategy_of({knob.name: knob.values[0] for knob in self.knobs})
        except ConfigError as error:
            return str(error)
        return self.conflict(strategy)

    def _strategy_of(self, choice: Mapping[str, Value]) -> Strategy:
        values: dict[str, Any] = self.reference.to_dict()
        facts = {"device": str(self.hardware.device_type), "method": str(self.workload.method)}
        for knob in self.knobs:
            seen = values | facts
            if all(seen[name] in allowed for name, allowed in knob.when.items()):
                values[knob.name] = choice[knob.name]
        return Strategy.from_dict(values)

    def conflict(self, strategy: Strategy) -> str | None:
        """Why the question does not allow this strategy, in words."""
        return conflict(strategy, self.workload, self.hardware, self.software)

    def strategies(self) -> Iterator[Strategy]:
        """Every possible strategy, each once."""
        seen: set[Strategy] = set()
        names = [knob.name for knob in self.knobs]
        for values in itertools.product(*(knob.values for knob in self.knobs)):
            strategy = self.strategy(dict(zip(names, values, strict=True)))
            if strategy is not None and strategy not in seen:
                seen.add(strategy)
                yield strategy
