"""Lists every possible combination of the values of knobs, as a table of strategies.

Knob by knob: what is impossible whatever the later knobs say is left out at once. Does not know
where knobs and rules come from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.space.strategy import KNOBS, Strategy
from autotune.space.strategy_table import StrategyTable

__all__ = ["Knob", "Rule", "Value", "list_strategies"]

Value = int | float | bool | str
"""A value of a knob, as a file and the storage hold it."""

Rule = Callable[[Strategy], str | None]
"""Why a strategy is impossible, in words; None where the rule has nothing against it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Knob:
    """One knob of a search space."""

    name: str
    values: tuple[Value, ...]
    """All values that may be tried."""
    when: Mapping[str, tuple[Value, ...]]
    """It is only moved where each named knob or fact has one of these values; else it keeps its
    reference value."""


def list_strategies(
    fixed: Mapping[str, Any], knobs: Sequence[Knob], rules: Sequence[Rule], *, most: int
) -> StrategyTable | None:
    """The possible strategies, each once, those of the first knob's first value first.

    Args:
        fixed: the value of every knob where it is not moved, and of facts that conditions ask.
        knobs: what is moved, in the order in which conditions look back.
        rules: what makes a strategy impossible.
        most: combinations that are looked at.

    Returns:
        None where there are more combinations than `most`.
    """
    table = StrategyTable({knob: (fixed[knob],) for knob in KNOBS}, {}, 1)
    decided = set(KNOBS) - {knob.name for knob in knobs}
    reads: dict[Rule, frozenset[str]] = {}
    table = _possible(table, rules, decided, reads)
    for knob in knobs:
        moves = _moves(table, knob, fixed)
        num_rows = len(table) + int(moves.sum()) * (len(knob.values) - 1)
        if num_rows > most:
            return None
        table = table.moved(knob.name, knob.values, moves)
        decided.add(knob.name)
        # Of others the answers stand: a rule that has not read a knob does not depend on it.
        asked = [rule for rule in rules if knob.name in reads[rule]]
        table = _possible(table, asked, decided, reads)
    return table


def _possible(
    table: StrategyTable,
    rules: Sequence[Rule],
    decided: set[str],
    reads: dict[Rule, frozenset[str]],
) -> StrategyTable:
    """The rows that no rule is against, as far as it looks at knobs that are decided."""
    for rule in rules:

        def is_impossible(row: Any, rule: Rule = rule) -> bool:
            return bool(rule(row)) and decided.issuperset(row.read)

        column = table.map(is_impossible)
        reads[rule] = column.knobs
        if any(column.values):
            table = table.take(~np.array(column.values)[column.codes])
    return table


def _moves(table: StrategyTable, knob: Knob, fixed: Mapping[str, Any]) -> NDArray[np.bool_]:
    """The rows in which a knob's condition holds."""
    holds = np.full(len(table), True)
    for asked, allowed in knob.when.items():
        if asked in KNOBS:
            holds &= table.has(asked, allowed)
        else:
            holds &= fixed[asked] in allowed
    return holds
