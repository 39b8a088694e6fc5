"""The possible strategies of a search space, against all of its combinations one by one."""

from __future__ import annotations

import itertools
import random

import pytest

from autotune.machine.hardware_spec import read_hardware
from autotune.plan.plan import ASSUMED_SOFTWARE
from autotune.question.workload import Method, Workload, load_model_shape
from autotune.space import search_space
from autotune.space.listing import Knob, list_strategies
from autotune.space.search_space import SearchSpace
from autotune.space.space_file import load_search_space
from autotune.space.strategy import KNOBS, Strategy


def space_of(
    name: str, *, model: str = "350M", hardware: str = "4xH100-80GB", method: Method = Method.FULL
) -> SearchSpace:
    workload = Workload(
        model=load_model_shape(model), seq_len=512, global_batch_size=32, method=method
    )
    return load_search_space(name, workload, read_hardware(hardware).all_ranks, ASSUMED_SOFTWARE)


@pytest.mark.parametrize("name", ["default", "memory"])
@pytest.mark.parametrize(
    ("model", "hardware", "method"),
    [
        ("350M", "4xH100-80GB", Method.FULL),
        ("7B", "1xRTX4090", Method.QLORA),
        ("13B", "8xV100-32GB", Method.LORA),
    ],
)
def test_every_possible_combination_is_listed_once(
    name: str, model: str, hardware: str, method: Method
) -> None:
    space = space_of(name, model=model, hardware=hardware, method=method)
    names, values = space.choices.keys(), space.choices.values()
    combinations = [dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*values)]
    drawn = random.Random(0).sample(combinations, min(8_000, len(combinations)))
    listed = [space.table.strategy(row) for row in range(len(space.table))]
    assert len(set(listed)) == len(listed) > 50
    assert {s for s in map(space.strategy, drawn) if s} <= set(listed)
    assert all(space.conflict(strategy) is None for strategy in listed)
    assert list(space.strategies()) == listed


def test_what_is_drawn_knob_by_knob_of_a_large_space_is_listed() -> None:
    space = space_of("full", model="tiny", hardware="1xV100-16GB")
    assert len(space.table) > search_space.MOST_STRATEGIES
    drawn = list(space.strategies())
    assert len(drawn) > 100
    keys = {
        tuple(codes)
        for codes in zip(
            *(space.table.map(lambda s, k=k: getattr(s, k)).spread().tolist() for k in KNOBS),
            strict=True,
        )
    }
    assert len(keys) == len(space.table)
    assert all(tuple(getattr(s, knob) for knob in KNOBS) in keys for s in drawn)


def test_a_space_with_more_combinations_than_the_limit_is_drawn_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = {
        space.strategy(row) for space in [space_of("default").table] for row in range(len(space))
    }
    monkeypatch.setattr(search_space, "MOST_COMBINATIONS", 100)
    space = space_of("default")
    drawn = {space.table.strategy(row) for row in range(len(space.table))}
    assert len(drawn) < len(whole)
    assert drawn < whole
    assert set(space.strategies()) == drawn


def test_a_rule_that_looks_at_later_knobs_is_asked_again_when_they_are_known() -> None:
    def not_both(strategy: Strategy) -> str | None:
        if strategy.zero_stage == 3 and strategy.torch_compile:
            return "not both"
        return None

    def needs_large_batch(strategy: Strategy) -> str | None:
        return "too small" if strategy.zero_stage == 0 and strategy.micro_batch_size < 4 else None

    knobs = [
        Knob(name="zero_stage", values=(0, 3), when={}),
        Knob(name="micro_batch_size", values=(1, 4), when={"device": ("cuda",)}),
        Knob(name="torch_compile", values=(False, True), when={"zero_stage": (3,)}),
    ]
    fixed = {knob: getattr(Strategy(), knob) for knob in KNOBS} | {"device": "cuda"}
    table = list_strategies(fixed, knobs, [not_both, needs_large_batch], most=100)
    assert table is not None
    assert [table.strategy(row) for row in range(len(table))] == [
        Strategy(micro_batch_size=4),
        Strategy(zero_stage=3, micro_batch_size=1),
        Strategy(zero_stage=3, micro_batch_size=4),
    ]
    on_cpu = list_strategies(fixed | {"device": "cpu"}, knobs, [not_both], most=100)
    assert on_cpu is not None
    assert on_cpu.values_of("micro_batch_size") == (1,)
    assert list_strategies(fixed, knobs, [], most=5) is None
