"""What is drawn of a space, against asking every rule about every value on the way."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from autotune.errors import ConfigError
from autotune.machine.hardware_spec import read_hardware
from autotune.plan.plan import ASSUMED_SOFTWARE
from autotune.question.workload import Method, Workload, load_model_shape
from autotune.space.drawing import draw_choices
from autotune.space.listing import Knob
from autotune.space.search_space import SearchSpace
from autotune.space.space_file import load_search_space
from autotune.space.strategy import KNOBS, Strategy

_NUMBER = 40


def _possible(space: SearchSpace, values: Mapping[str, Any]) -> Strategy | None:
    try:
        strategy = Strategy(**{name: values[name] for name in KNOBS})
    except ConfigError:
        return None
    return None if space.conflict(strategy) else strategy


def _drawn_one_by_one(
    space: SearchSpace, fixed: Mapping[str, Any], knobs: Sequence[Knob]
) -> Iterator[Strategy]:
    draw = random.Random(0)
    for _ in range(_NUMBER):
        values = dict(fixed)
        for knob in knobs:
            if all(values[name] in allowed for name, allowed in knob.when.items()):
                order = draw.sample(knob.values, len(knob.values))
                tries = [values | {knob.name: value} for value in order]
                possible = (v for v in tries if v == values or _possible(space, v))
                values = next(possible, tries[0])
        if strategy := _possible(space, values):
            yield strategy


@pytest.mark.parametrize(
    ("name", "model", "hardware", "batch", "method"),
    [
        ("full", "7B", "8xA100-80GB", 32, Method.FULL),
        ("full", "13B", "2xH200", 32, Method.QLORA),
        ("memory", "70B", "1xV100-32GB", 24, Method.FULL),
        # Micro-batch 1 divides no batch of 7 on four ranks: nothing is possible at first.
        ("full", "1.1B", "4xA100-40GB", 7, Method.FULL),
    ],
)
def test_what_is_drawn_is_what_asking_every_rule_about_every_value_draws(
    name: str, model: str, hardware: str, batch: int, method: Method
) -> None:
    workload = Workload(
        model=load_model_shape(model), seq_len=512, global_batch_size=batch, method=method
    )
    machine = read_hardware(hardware).all_ranks
    space = load_search_space(name, workload, machine, ASSUMED_SOFTWARE)
    fixed, knobs = space._fixed, space._bounded
    drawn = [
        Strategy(**{knob: values[knob] for knob in KNOBS})
        for values in draw_choices(fixed, knobs, space._rules, number=_NUMBER)
    ]
    assert drawn == list(_drawn_one_by_one(space, fixed, knobs))
