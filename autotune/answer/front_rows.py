"""The rows of a Pareto front that a table shows, and what they have in common.

Does not know the other columns of the table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from autotune.space.strategy import Strategy

__all__ = ["MOST_ROWS", "StrategyColumn", "front_title", "shown_rows", "strategy_column"]

MOST_ROWS = 7
"""Rows of a front that a table shows without --all."""

_LEADING = re.compile(r"Z\d|mb\d+")
"""ZeRO stage and micro-batch size. Every row keeps them, so that no row is empty."""

Row = TypeVar("Row")


@dataclass(frozen=True, kw_only=True, slots=True)
class StrategyColumn:
    """The strategies of a table, without the words that all rows share."""

    shared: str
    """The shared words; empty if there are none."""
    rows: tuple[str, ...]


def strategy_column(strategies: Sequence[Strategy]) -> StrategyColumn:
    """Split the words of several strategies into shared words and words of each row."""
    words = [str(strategy).split() for strategy in strategies]
    shared: list[str] = []
    if len(words) > 1:
        common = set(words[0]).intersection(*words[1:])
        shared = [word for word in words[0] if word in common and not _LEADING.fullmatch(word)]
    rows = (" ".join(word for word in row if word not in shared) for row in words)
    return StrategyColumn(shared=" ".join(shared), rows=tuple(rows))


def shown_rows(front: Sequence[Row], picks: Iterable[Row], *, all_rows: bool) -> list[Row]:
    """At most `MOST_ROWS` rows of a front, in its order.

    The picks are always among them. The others are spread evenly over the front.

    Args:
        front: the rows, fastest first.
        picks: rows of the front that have a name.
        all_rows: show every row.
    """
    if all_rows or len(front) <= MOST_ROWS:
        return list(front)
    chosen = {index for index, row in enumerate(front) if any(row is pick for pick in picks)}
    others = [index for index in range(len(front)) if index not in chosen]
    room = max(0, MOST_ROWS - len(chosen))
    chosen.update(others[(2 * rank + 1) * len(others) // (2 * room)] for rank in range(room))
    return [front[index] for index in sorted(chosen)]


def front_title(name: str, *, num_shown: int, num_rows: int, shared: Iterable[str]) -> str:
    """The title of the table: its name, the number of rows, and what all rows share."""
    title = name
    if num_shown < num_rows:
        title += f" ({num_shown} of {num_rows} rows; --all shows every row)"
    common = ", ".join(filter(None, shared))
    return f"{title}\nAll rows: {common}" if common else title
