"""Strategies in rows, and what a function of a strategy gives for each of them."""

from __future__ import annotations

import numpy as np
import pytest

from autotune.knob_values import Offload
from autotune.space.strategy import Strategy
from autotune.space.strategy_table import StrategyTable

STRATEGIES = [
    Strategy(zero_stage=stage, micro_batch_size=size, fused_kernels=fused)
    for stage in (0, 1, 2)
    for size in (1, 2, 4, 8)
    for fused in (False, True)
]


@pytest.fixture
def table() -> StrategyTable:
    return StrategyTable.of(STRATEGIES)


def test_a_row_is_the_strategy_it_was_made_of(table: StrategyTable) -> None:
    assert len(table) == len(STRATEGIES)
    assert [table.strategy(row) for row in range(len(table))] == STRATEGIES


def test_rows_are_taken_by_slice_number_and_mask(table: StrategyTable) -> None:
    numbers = np.array([5, 5, 2])
    mask = np.arange(len(STRATEGIES)) % 7 == 3
    taken = {
        "slice": (table.take(slice(4, 9)), STRATEGIES[4:9]),
        "numbers": (table.take(numbers), [STRATEGIES[n] for n in numbers]),
        "mask": (table.take(mask), STRATEGIES[3::7]),
    }
    for part, expected in taken.values():
        assert [part.strategy(row) for row in range(len(part))] == expected


def test_a_function_is_asked_once_for_each_combination_of_what_it_reads() -> None:
    large = StrategyTable.of(STRATEGIES * 40)
    asked: list[tuple[int, int]] = []

    def product(strategy: Strategy) -> int:
        # Which knobs are read depends on one of them.
        asked.append(
            (strategy.zero_stage, strategy.micro_batch_size if strategy.zero_stage else 0)
        )
        return strategy.zero_stage * (strategy.micro_batch_size if strategy.zero_stage else 1)

    column = large.map(product)
    assert column.knobs == {"zero_stage", "micro_batch_size"}
    assert column.spread().tolist() == [s.zero_stage * s.micro_batch_size for s in STRATEGIES] * 40
    assert sorted(column.values) == [0, 1, 2, 4, 8, 16]
    # Some rows are looked at before, to see what is read.
    assert len(asked) < 100


def test_a_knob_that_is_read_in_a_single_row_is_not_missed() -> None:
    strategies = [Strategy(micro_batch_size=n + 1) for n in range(997)]
    strategies.insert(501, Strategy(micro_batch_size=7, checkpoint_interval=1, zero_stage=3))
    strategies.append(Strategy(micro_batch_size=7, checkpoint_interval=1, zero_stage=2))

    def stage(strategy: Strategy) -> int:
        return strategy.zero_stage if strategy.checkpoint_interval else -1

    column = StrategyTable.of(strategies).map(stage)
    assert column.spread().tolist() == list(map(stage, strategies))


def test_other_columns_are_arguments(table: StrategyTable) -> None:
    size = table.map(lambda strategy: strategy.micro_batch_size)
    column = table.map(lambda strategy, size: (strategy.zero_stage, size), size)
    assert column.knobs == {"zero_stage"}
    for row, strategy in enumerate(STRATEGIES):
        assert column[row] == (strategy.zero_stage, strategy.micro_batch_size)


def test_more_combinations_than_rows_are_told_apart() -> None:
    """Keys are numbered anew before they grow too large."""
    rng = np.random.default_rng(0)
    table = StrategyTable.of([Strategy(zero_stage=1)])
    everything = np.full(1, True)
    for knob in ("micro_batch_size", "mlp_tiles", "loss_tiles", "reduce_bucket_size"):
        table = table.moved(knob, range(1, 40), everything)
        table = table.take(np.sort(rng.choice(len(table), min(len(table), 300), replace=False)))
        everything = np.full(len(table), True)
    column = table.map(
        lambda s: (s.micro_batch_size, s.mlp_tiles, s.loss_tiles, s.reduce_bucket_size)
    )
    for row in range(len(table)):
        one = table.strategy(row)
        knobs = (one.micro_batch_size, one.mlp_tiles, one.loss_tiles, one.reduce_bucket_size)
        assert column[row] == knobs


def test_a_moved_knob_keeps_its_value_where_it_does_not_move(table: StrategyTable) -> None:
    moves = table.has("zero_stage", (1, 2))
    moved = table.moved("offload_optimizer", (Offload.NONE, Offload.CPU), moves)
    found = [moved.strategy(row) for row in range(len(moved))]
    assert len(set(found)) == len(found) == len(STRATEGIES) + int(moves.sum())
    assert all(s.zero_stage or s.offload_optimizer is Offload.NONE for s in found)
    assert found == sorted(found, key=lambda s: s.zero_stage)


def test_values_of_a_knob_are_those_that_occur(table: StrategyTable) -> None:
    assert table.values_of("micro_batch_size") == (1, 2, 4, 8)
    small = table.take(table.has("micro_batch_size", (2, 8)))
    assert small.values_of("micro_batch_size") == (2, 8)
    assert small.values_of("optimizer") == ("adamw",)
    assert table.take(slice(0, 0)).values_of("optimizer") == ()
