"""Arithmetic that works alike for one strategy and for a table of strategies.

A formula over the answers of several models is written once. `Ask` gets an answer for a strategy,
or for each row of a table. An answer is a number or an array, or a record of numbers or of arrays,
with one element for each row. The functions cover the operations in which numbers differ from
numpy's arrays. Type annotations are those of one strategy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np

from autotune.space.strategy import Strategy

__all__ = [
    "Ask",
    "Stages",
    "StagesOfOne",
    "ask_about",
    "chosen",
    "exponential",
    "greatest",
    "least",
    "logarithm",
    "next_power_of_2",
    "whole",
]


Ask = Callable[..., Any]
"""`ask(function, *others)` gives `function(strategy, *others)`, for one strategy or each row.

The function does not know tables: it is called once for each combination of the knobs that it
reads. For a table, the others are columns.
"""


def ask_about(strategy: Strategy) -> Ask:
    """Asks about one strategy."""

    def ask(function: Callable[..., Any], *others: Any) -> Any:
        return function(strategy, *others)

    return ask


class Stages(Protocol):
    """A record for each stage of a pipeline: of one strategy, or of each row of a table."""

    def greatest(self, number: Callable[[Any], Any]) -> Any:
        """The record with the greatest number, the first of equals."""
        ...

    def total(self, number: Callable[[Any], Any]) -> Any:
        """The sum of a number of each record."""
        ...


class StagesOfOne:
    """A record for each stage of a pipeline, for one strategy.

    Args:
        records: one for each stage.
    """

    def __init__(self, records: Iterable[Any]) -> None:
        self._records = tuple(records)

    def greatest(self, number: Callable[[Any], Any]) -> Any:
        """The record with the greatest number, the first of equals."""
        return max(self._records, key=number)

    def total(self, number: Callable[[Any], Any]) -> Any:
        """The sum of a number of each record."""
        return sum(map(number, self._records))


def greatest(first: Any, *others: Any) -> Any:
    """The greatest of several numbers, row by row where any of them is an array."""
    for other in others:
        if isinstance(first, np.ndarray) or isinstance(other, np.ndarray):
            first = np.maximum(first, other)
        else:
            first = max(first, other)
    return first


def chosen(condition: Any, first: Any, second: Any) -> Any:
    """The first where the condition holds, else the second."""
    if isinstance(condition, np.ndarray):
        return np.where(condition, first, second)
    return first if condition else second


def exponential(number: Any) -> Any:
    """Euler's number to the power of another."""
    return np.exp(number) if isinstance(number, np.ndarray) else math.exp(number)


def logarithm(number: Any) -> Any:
    """The natural logarithm of a number."""
    return np.log(number) if isinstance(number, np.ndarray) else math.log(number)


def least(first: Any, second: Any) -> Any:
    """The smaller of two."""
    return -greatest(-first, -second)


def next_power_of_2(number: Any) -> Any:
    """The smallest power of two that is at least a number."""
    if isinstance(number, np.ndarray):
        return 2.0 ** np.ceil(np.log2(number))
    return 2.0 ** math.ceil(math.log2(number))


def whole(number: Any) -> Any:
    """A number truncated towards zero, as `int` does it."""
    return number.astype(np.int64) if isinstance(number, np.ndarray) else int(number)
