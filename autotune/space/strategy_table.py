"""A table of many strategies: a column of small codes for each knob that is moved.

What depends on a few knobs is worked out once for each combination of them that occurs, and which
knobs those are is seen, not declared: a row that stands for a strategy notes what is read of it.
Does not know which strategies are possible, nor what is asked of them.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.space.read_knobs import KnobReader
from autotune.space.strategy import KNOBS, Strategy

__all__ = ["Codes", "Column", "StrategyTable"]

Codes = NDArray[np.integer[Any]]
"""One small number a row: the index of its value among few."""

_NUM_SAMPLES = 8
"""Rows that are asked first, to see which knobs are read."""

_LEAST_KEYS = 2**16


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One value a row, of few different ones."""

    codes: Codes
    values: Sequence[Any]
    """What the codes stand for."""
    knobs: frozenset[str]
    """The knobs that were read to find them out, beside other columns."""

    def __getitem__(self, row: int) -> Any:
        """The value of one row."""
        return self.values[self.codes[row]]

    def spread(self) -> Any:
        """One number a row, as an array; of records one record whose fields are such arrays."""
        first: Any = self.values[0]
        if not is_dataclass(first):
            return np.array(self.values)[self.codes]
        names = [field.name for field in fields(first)]
        arrays = {
            name: np.array([getattr(value, name) for value in self.values])[self.codes]
            for name in names
        }
        kind: Any = type(first)
        return kind(**arrays)


class StrategyTable:
    """Strategies in rows.

    Args:
        values: of each knob, all that occur.
        codes: for each knob with several values, the index of each row's value among them.
        num_rows: how many strategies these are.
    """

    def __init__(
        self, values: Mapping[str, Sequence[Any]], codes: Mapping[str, Codes], num_rows: int
    ) -> None:
        self._values = dict(values)
        self._codes = dict(codes)
        self._num_rows = num_rows

    @classmethod
    def of(cls, strategies: Iterable[Strategy]) -> StrategyTable:
        """A table of strategies that are there already."""
        listed = list(strategies)
        values: dict[str, list[Any]] = {}
        codes: dict[str, Codes] = {}
        for knob in KNOBS:
            column = [getattr(strategy, knob) for strategy in listed]
            values[knob] = list(dict.fromkeys(column))
            indices = {value: index for index, value in enumerate(values[knob])}
            if len(indices) > 1:
                codes[knob] = _narrow(np.array([indices[v] for v in column]), len(indices))
        return cls(values, codes, len(listed))

    def __len__(self) -> int:
        """Strategies."""
        return self._num_rows

    def value(self, knob: str, row: int) -> Any:
        """One knob of one row.

        Raises:
            AttributeError: there is no such knob.
        """
        values = self._values.get(knob)
        if values is None:
            raise AttributeError(knob)
        codes = self._codes.get(knob)
        return values[0 if codes is None else codes[row]]

    def values_of(self, knob: str) -> tuple[Any, ...]:
        """The values of one knob that some row has."""
        values, codes = self._values[knob], self._codes.get(knob)
        indices = [0] if codes is None else np.unique(codes).tolist()
        return tuple(values[index] for index in indices) if self._num_rows else ()

    def strategy(self, row: int) -> Strategy:
        """One row on its own."""
        return Strategy(**{knob: self.value(knob, row) for knob in KNOBS})

    def take(self, rows: Any) -> StrategyTable:
        """Some rows: a slice, their numbers (repeated ones too), or a mask."""
        if isinstance(rows, slice):
            codes = {knob: column[rows] for knob, column in self._codes.items()}
            return StrategyTable(self._values, codes, len(range(self._num_rows)[rows]))
        numbers = np.asarray(rows)
        if numbers.dtype == bool:
            # Once for all columns: each would go through the mask anew, at nine times the cost.
            numbers = np.flatnonzero(numbers)
        numbers = numbers.astype(np.intp, copy=False)
        codes = {knob: column.take(numbers) for knob, column in self._codes.items()}
        return StrategyTable(self._values, codes, len(numbers))

    def find(self, strategy: Strategy) -> int | None:
        """The row of a strategy; None where there is none."""
        rows: NDArray[np.intp] | None = None
        for knob in KNOBS:
            values, codes = self._values[knob], self._codes.get(knob)
            index = next((n for n, v in enumerate(values) if v == getattr(strategy, knob)), None)
            if index is None:
                return None
            if codes is not None:
                left = codes == index if rows is None else codes[rows] == index
                rows = np.flatnonzero(left) if rows is None else rows[left]
        if rows is None:
            return 0 if self._num_rows else None
        return int(rows[0]) if len(rows) else None

    def has(self, knob: str, wanted: Container[Any]) -> NDArray[np.bool_]:
        """For each row, whether its value of a knob is among those that are wanted."""
        answers = np.array([value in wanted for value in self._values[knob]])
        codes = self._codes.get(knob)
        return np.full(self._num_rows, answers[0]) if codes is None else answers[codes]

    def moved(self, knob: str, values: Sequence[Any], where: NDArray[np.bool_]) -> StrategyTable:
        """Each row once for each value of a knob, those outside `where` as they are.

        A knob that had one value so far; the rows stay in their order.
        """
        counts = np.where(where, len(values), 1)
        rows = np.repeat(np.arange(self._num_rows), counts)
        index = np.arange(len(rows)) - (np.cumsum(counts) - counts).take(rows)
        kept = self._values[knob][0]
        known = list(dict.fromkeys((kept, *values)))
        codes = np.array([known.index(value) for value in values])[index]
        moved = self.take(rows)
        moved._values[knob] = known
        moved._codes[knob] = _narrow(np.where(where[rows], codes, 0), len(known))
        return moved

    def map(self, function: Callable[..., Any], *arguments: Column) -> Column:
        """What a function of a strategy gives for each row.

        It is called once for each combination of the knobs it reads, so it must depend on these
        and on its other arguments alone, and what it returns must be hashable.

        Args:
            function: of a strategy, and of one value of each of `arguments`.
            arguments: columns of this table.
        """
        read: set[str] = set()
        step = max(1, self._num_rows // _NUM_SAMPLES)
        for row in range(0, self._num_rows, step):
            self._ask(function, arguments, row, read)
        while True:
            groups, firsts = self._groups(sorted(read), arguments)
            known = len(read)
            found = [self._ask(function, arguments, row, read) for row in firsts.tolist()]
            if len(read) == known:
                break
        indices: dict[Any, int] = {}
        numbers = np.array([indices.setdefault(value, len(indices)) for value in found], np.int32)
        return Column(codes=numbers[groups], values=list(indices), knobs=frozenset(read))

    def _ask(
        self,
        function: Callable[..., Any],
        arguments: Sequence[Column],
        number: int,
        read: set[str],
    ) -> Any:
        row = KnobReader(lambda knob: self.value(knob, number))
        value = function(row, *(argument[number] for argument in arguments))
        read.update(row.read)
        return value

    def _groups(self, knobs: Sequence[str], arguments: Sequence[Column]) -> tuple[Codes, Codes]:
        """For each row the number of its combination, and a row of each combination."""
        parts = [
            (codes, len(self._values[k]))
            for k in knobs
            if (codes := self._codes.get(k)) is not None
        ]
        parts += [(argument.codes, len(argument.values)) for argument in arguments]
        keys: Codes = np.zeros(self._num_rows, np.int64)
        num_keys = 1
        for codes, num_values in parts:
            if num_keys * num_values > max(_LEAST_KEYS, 4 * self._num_rows):
                keys, firsts = _numbered(keys, num_keys)
                num_keys = len(firsts)
            keys *= num_values
            keys += codes
            num_keys *= num_values
        return _numbered(keys, num_keys)


def _numbered(keys: Codes, num_keys: int) -> tuple[Codes, Codes]:
    """Keys without gaps, and for each the first row that has it."""
    num_rows = len(keys)
    first = np.full(num_keys, num_rows)
    # Of several rows with one key the last that is written stays.
    first[keys[::-1]] = np.arange(num_rows - 1, -1, -1)
    present = np.flatnonzero(first < num_rows)
    numbers = np.empty(num_keys, np.int64)
    numbers[present] = np.arange(len(present))
    return numbers[keys], first[present]


def _narrow(codes: Codes, num_values: int) -> Codes:
    """In as few bytes as they take."""
    return codes.astype(np.min_scalar_type(num_values))
