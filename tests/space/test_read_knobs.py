"""What a function reads of a strategy is seen, and its answers are kept by that."""

from __future__ import annotations

import pytest

from autotune.space.read_knobs import KnobReader, ReadCache
from autotune.space.strategy import KNOBS, Strategy

STRATEGY = Strategy(zero_stage=1, micro_batch_size=4)


def reader() -> KnobReader:
    return KnobReader(lambda knob: getattr(STRATEGY, knob))


def test_knobs_are_noted_that_are_read_directly_or_not() -> None:
    read = reader()
    assert read.micro_batch_size == 4
    assert read.model_parallel_size == 1
    assert set(read.read) == {
        "micro_batch_size",
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "sequence_parallel_size",
    }


def test_all_of_a_strategy_can_be_asked() -> None:
    read = reader()
    assert str(read) == str(STRATEGY)
    assert read.to_dict() == STRATEGY.to_dict()
    assert set(read.read) == set(KNOBS)
    with pytest.raises(AttributeError):
        _ = reader().no_knob  # type: ignore[attr-defined]


def test_a_hash_reads_all_knobs() -> None:
    hash(STRATEGY)
    read = reader()
    assert hash(read) == hash(STRATEGY)
    assert set(read.read) == set(KNOBS)


def test_an_answer_is_worked_out_once_for_the_knobs_that_are_read() -> None:
    asked = []

    def samples(strategy: Strategy, factor: int) -> int:
        asked.append(factor)
        return factor * strategy.micro_batch_size

    cached = ReadCache(samples)
    for stage in (0, 1, 2):
        strategy = Strategy(zero_stage=stage, micro_batch_size=4)
        assert [cached(strategy, factor) for factor in (1, 3)] == [4, 12]
    assert cached(Strategy(micro_batch_size=8), 1) == 8
    assert asked == [1, 3, 1]


def test_a_knob_that_is_read_later_makes_no_earlier_answer_stale() -> None:
    def tiles(strategy: Strategy) -> int:
        return strategy.mlp_tiles if strategy.zero_stage else 1

    cached = ReadCache(tiles)
    strategies = [
        Strategy(zero_stage=stage, mlp_tiles=pieces) for pieces in (1, 2, 4) for stage in (0, 1, 2)
    ]
    for _ in range(2):
        assert [cached(each) for each in strategies] == [tiles(each) for each in strategies]


def test_a_table_that_asks_a_cache_sees_what_it_reads() -> None:
    cached = ReadCache(lambda strategy: strategy.micro_batch_size)
    cached(STRATEGY)
    read = reader()
    assert cached(read) == 4
    assert read.read == ["micro_batch_size"]
