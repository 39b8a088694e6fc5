"""The knobs of a search space as Optuna's parameters, and the way back to a strategy.

Does not know samplers or trials.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from autotune.space.search_space import SearchSpace, Value
from autotune.space.strategy import Strategy

__all__ = ["Parameters"]


class Parameters:
    """One parameter for each knob with a choice.

    Numbers become the integer index of the value, so that a sampler sees their order and none of
    their gaps; all others are categorical. Values that no possible strategy has are left out, so
    that no trial is spent on learning what the question already rules out.

    Args:
        space: whose knobs they are.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._values: dict[str, tuple[Value, ...]] = {}
        for name, values in space.choices.items():
            seen = space.table.values_of(name)
            possible = [value for value in values if value in seen] or [values[0]]
            self._values[name] = tuple(_in_order(name, possible))

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """What Optuna draws from, by knob."""
        return {
            name: IntDistribution(0, len(values) - 1)
            if _is_ordinal(values)
            else CategoricalDistribution(values)
            for name, values in self._values.items()
            if len(values) > 1
        }

    def strategy(self, params: Mapping[str, Any]) -> Strategy | None:
        """The strategy that drawn values stand for; None where it is impossible."""
        choice: dict[str, Value] = {}
        for name, values in self._values.items():
            if name not in params:
                choice[name] = values[0]
            else:
                choice[name] = values[params[name]] if _is_ordinal(values) else params[name]
        return self._space.strategy(choice)

    def params(self, strategy: Strategy) -> dict[str, Any] | None:
        """Values that stand for a strategy; None where it is not of this space."""
        record = strategy.to_dict()
        params: dict[str, Any] = {}
        for name, values in self._values.items():
            if len(values) == 1:
                continue
            # A knob whose condition does not hold may have a value that is none of its own.
            value = record[name] if record[name] in values else values[0]
            params[name] = values.index(value) if _is_ordinal(values) else value
        return params if self.strategy(params) == strategy else None


def _is_ordinal(values: Sequence[Value]) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) for value in values)


def _in_order(name: str, values: Sequence[Value]) -> list[Value]:
    """Numbers by size; `checkpoint_interval` 0 is last: it stands for no checkpoint at all."""
    if not _is_ordinal(values):
        return list(values)
    return sorted(
        values,
        key=lambda value: math.inf if name == "checkpoint_interval" and not value else int(value),
    )
