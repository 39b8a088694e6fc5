"""Which rows of a front a table shows, and what it says once for all of them."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType
from sample_study import complete, summary

from autotune.answer.front_rows import MOST_ROWS, shown_rows, strategy_column
from autotune.answer.front_table import pareto_table
from autotune.answer.strategy_legend import STRATEGY_LEGEND
from autotune.knob_values import Attention, CheckpointScope, Offload, Optimizer, Precision
from autotune.space.strategy import Strategy

LONG = Strategy(
    zero_stage=3,
    micro_batch_size=16,
    checkpoint_interval=2,
    offload_optimizer=Offload.CPU,
    offload_ratio=0.5,
    offload_param=Offload.CPU,
    offload_checkpoints=Offload.CPU,
    mlp_tiles=4,
    loss_tiles=8,
    attention=Attention("flash_attention_2"),
    precision=Precision.FP16,
    reduce_bucket_size=50_000_000,
    overlap_comm=False,
)


def printed(renderable: RenderableType, width: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(renderable)
    return stream.getvalue()


@given(num=st.integers(0, 60), picks=st.sets(st.integers(0, 59), max_size=4), is_all=st.booleans())
def test_a_short_front_has_its_picks_and_at_most_seven_rows(
    num: int, picks: set[int], is_all: bool
) -> None:
    front = [object() for _ in range(num)]
    named = [front[pick] for pick in picks if pick < num]
    shown = shown_rows(front, named, all_rows=is_all)
    assert len(shown) == (num if is_all else min(num, MOST_ROWS))
    assert all(any(row is pick for row in shown) for pick in named)
    places = [front.index(row) for row in shown]
    assert places == sorted(set(places))


def test_words_that_all_rows_share_are_said_once() -> None:
    rows = [
        Strategy(zero_stage=stage, micro_batch_size=8, fused_kernels=True, torch_compile=True)
        for stage in (0, 2)
    ]
    column = strategy_column(rows)
    assert (column.shared, column.rows) == ("liger compile", ("Z0 mb8", "Z2 mb8"))
    assert strategy_column(rows[:1]).rows == ("Z0 mb8 liger compile",)


def test_a_front_says_its_loss_class_once_and_how_many_rows_are_left_out() -> None:
    study = summary(*(complete(n, 1000.0 - n, 60.0 - n) for n in range(10)))
    short, whole = (printed(pareto_table(study, all_rows=each), 80) for each in (False, True))
    assert "Pareto front (7 of 10 rows; --all shows every row)" in short
    assert re.search(r"All rows: .*neutral", short)
    assert "--all" not in whole
    assert sum(f" {n} Z" in whole for n in range(10)) == 10


@pytest.mark.parametrize("losses", [(Optimizer.ADAMW,), (Optimizer.ADAMW, Optimizer.LION)])
def test_a_front_of_long_strategies_is_readable_at_80_columns(losses: tuple[Any, ...]) -> None:
    trials = [complete(0, 76_233.0, 57.2, strategy=LONG), complete(1, 70_000.0, 40.0)]
    text = printed(pareto_table(summary(*trials)), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "flash" in text


@pytest.mark.parametrize(
    "strategy",
    [
        LONG,
        Strategy(zero_stage=1, tensor_parallel_size=2),
        Strategy(pipeline_parallel_size=2, loss_tiles=8),
        Strategy(sequence_parallel_size=2, checkpoint_interval=1, lora_rank=16, lora_alpha=32),
        Strategy(checkpoint_interval=1, checkpoint_scope=CheckpointScope.MLP, torch_compile=True),
        Strategy(optimizer=Optimizer.ADAMW_8BIT, lora_rank=8, lora_targets="mlp"),
        Strategy(zero_stage=3, zero_quantized_weights=True, zero_hpz_partition_size=2),
    ],
    ids=str,
)
def test_the_legend_explains_each_word_of_a_strategy(strategy: Strategy) -> None:
    for word in str(strategy).split():
        kind = re.sub(r"@.*|(?<=:).*|(?<==).*", "", word)
        assert _without_figures(kind) in _without_figures(STRATEGY_LEGEND), word


def _without_figures(text: str) -> str:
    return re.sub(r"(?<=[a-zA-Z-])[\d.]+M?%?", "", text)
