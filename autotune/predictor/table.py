"""Memory and time of a whole table of strategies, block by block, as for a single one.

The models compute a value that depends on few knobs once for each combination of these knobs. The
rest is the models' own arithmetic, on arrays. Does not know formulas.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.predictor.memory.peak import MemoryModel
from autotune.predictor.memory.peak_memory import PeakMemory
from autotune.predictor.step_time.model import StepParts, TimeModel
from autotune.space.strategy_table import Column, StrategyTable

__all__ = ["Explanation", "explain_table"]

_BLOCK_ROWS = 2**17
"""Rows that are computed at a time, one for each stage of a pipeline; limits the memory."""

_Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """Peak memory and step time of consecutive rows of a table, one element for each row."""

    table: StrategyTable
    """The table of these rows alone."""
    peak: PeakMemory
    parts: StepParts

    def ask(self, function: Callable[..., Any], *others: Column) -> Any:
        """The values of a function of a strategy for each row: an array, or a record of arrays."""
        return self.table.map(function, *others).spread()


def explain_table(
    table: StrategyTable, memory: MemoryModel, time: TimeModel
) -> Iterator[Explanation]:
    """Peak memory and step time of each row, in order."""
    if not len(table):
        return
    shards = table.map(memory.states.shards)
    num_stages = np.array([len(stages) for stages in shards.values])[shards.codes]
    block = (np.cumsum(num_stages) - 1) // _BLOCK_ROWS
    borders = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(table)]
    for start, end in itertools.pairwise(borders):
        yield _explain(table.take(slice(start, end)), num_stages[start:end], memory, time)


def _explain(
    table: StrategyTable, num_stages: _Array, memory: MemoryModel, time: TimeModel
) -> Explanation:
    # Each stage of a pipeline has a row of its own until the worst stage is known.
    rows = np.repeat(np.arange(len(table)), num_stages)
    starts = np.cumsum(num_stages) - num_stages
    stages = table.take(rows)
    shards = stages.map(memory.states.shards)
    stage = Column(
        codes=np.arange(len(rows)) - starts[rows],
        values=range(int(num_stages.max())),
        knobs=frozenset(),
    )
    shard = stages.map(lambda _, shards, stage: shards[stage], shards, stage)
    accumulation = stages.map(memory.states.accumulation)
    is_accumulating = stages.map(lambda _, number: number > 1, accumulation)

    def ask(function: Callable[..., Any], *others: Column) -> Any:
        return stages.map(function, *others).spread()

    peaks = memory.peak_of(ask, shard, is_accumulating)
    parts = time.parts_of(ask, shard, shards, accumulation)
    return Explanation(
        table=table,
        peak=memory.of_all_stages(_StageRows(peaks, rows, starts)),
        parts=time.of_all_stages(_StageRows(parts, rows, starts)),
    )


class _StageRows:
    """A record for each stage, the stages of each row of a table one after the other.

    Args:
        records: one record of arrays, with one element for each stage.
        rows: the row that each stage belongs to.
        starts: the index of each row's first stage.
    """

    def __init__(self, records: Any, rows: _Array, starts: _Array) -> None:
        self._records = records
        self._rows = rows
        self._starts = starts

    def greatest(self, number: Callable[[Any], Any]) -> Any:
        """The record with the greatest number, the first of equals."""
        numbers = number(self._records)
        is_greatest = numbers == np.maximum.reduceat(numbers, self._starts)[self._rows]
        found = np.flatnonzero(is_greatest)
        return _take(self._records, found[np.searchsorted(found, self._starts)])

    def total(self, number: Callable[[Any], Any]) -> Any:
        """The sum of a number over the stages of each row."""
        return np.add.reduceat(number(self._records), self._starts)


def _take(record: Any, indices: _Array) -> Any:
    """Some elements of each array of a record, and of the records in it."""
    if isinstance(record, np.ndarray):
        return record[indices]
    if isinstance(record, dict):
        return {name: _take(value, indices) for name, value in record.items()}
    if is_dataclass(record) and not isinstance(record, type):
        taken = {f.name: _take(getattr(record, f.name), indices) for f in fields(record)}
        return replace(record, **taken)
    return record
