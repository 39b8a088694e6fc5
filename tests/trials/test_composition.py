from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from conftest import RunTrial

from autotune.question.workload import Workload
from autotune.space.strategy import Strategy
from autotune.trials.composition import Composition, composition_of
from autotune.trials.trial import TrialSpec

LONG = Composition(num_micro_steps=32, num_run=4)


def test_the_time_of_a_long_step_is_the_first_many_of_those_between_and_the_last() -> None:
    # The first takes 2 s, two between take 6 s, the last one 5 s.
    assert LONG.step_time_s([2.0, 6.0, 5.0]) == 2.0 + 30 * 3.0 + 5.0
    assert LONG.share_run == 1 / 8


def test_a_long_step_is_timed_in_three_parts_and_a_whole_one_in_one() -> None:
    assert LONG.parts(["a", "b", "c", "d"]) == [["a"], ["b", "c"], ["d"]]
    whole = Composition(num_micro_steps=2, num_run=2)
    assert whole.is_whole
    assert whole.parts(["a", "b"]) == [["a", "b"]]
    assert whole.step_time_s([7.0]) == 7.0


@pytest.mark.parametrize(
    ("micro_batch_size", "num_ranks", "num_run"), [(1, 1, 4), (2, 2, 4), (2, 4, 4), (4, 4, 4)]
)
def test_steps_of_eight_micro_batches_and_more_are_run_in_part(
    tiny: Workload, micro_batch_size: int, num_ranks: int, num_run: int
) -> None:
    strategy = Strategy(micro_batch_size=micro_batch_size)
    found = composition_of(replace(tiny, global_batch_size=128), strategy, num_ranks)
    assert found.num_micro_steps == 128 // (micro_batch_size * num_ranks)
    assert found.num_run == num_run


def test_short_steps_are_run_whole(tiny: Workload) -> None:
    strategy = Strategy(micro_batch_size=1)
    assert composition_of(replace(tiny, global_batch_size=7), strategy, 1).is_whole


def test_steps_of_a_pipeline_are_run_whole(tiny: Workload) -> None:
    strategy = Strategy(micro_batch_size=1, pipeline_parallel_size=2)
    assert composition_of(replace(tiny, global_batch_size=64), strategy, 2).is_whole


def test_the_engine_trains_as_many_samples_a_step_as_are_run(tiny: Workload) -> None:
    whole = replace(tiny, global_batch_size=128)
    assert LONG.workload(whole) == replace(whole, global_batch_size=16)


def test_a_trial_can_be_asked_to_run_all_of_its_steps(tiny: Workload) -> None:
    spec = TrialSpec(
        workload=replace(tiny, global_batch_size=64), strategy=Strategy(), num_ranks=1
    )
    assert not spec.composition.is_whole
    assert replace(spec, composes=False).composition.is_whole


@pytest.mark.parametrize(
    ("knobs", "num_warm_up"),
    [
        ({"zero_stage": 0}, 1),
        ({"zero_stage": 2, "offload_optimizer": "cpu"}, 1),
        ({"zero_stage": 3}, 2),
        # Runs four micro-batches in its first step.
        ({"zero_stage": 3, "micro_batch_size": 1}, 1),
    ],
)
def test_only_short_steps_of_zero3_take_two_to_warm_up(
    tiny: Workload, knobs: dict[str, Any], num_warm_up: int
) -> None:
    strategy = Strategy.from_dict({"micro_batch_size": 8} | knobs)
    workload = replace(tiny, global_batch_size=16)
    spec = TrialSpec(workload=workload, strategy=strategy, num_ranks=1)
    assert spec.num_warm_up_steps == num_warm_up
    assert replace(spec, composes=False).num_warm_up_steps == num_warm_up
    assert replace(spec, warmup_steps=7).num_warm_up_steps == 7


@pytest.mark.slow
@pytest.mark.timeout(600)  # The first with offload compiles DeepSpeed's CPU Adam.
@pytest.mark.parametrize(
    "knobs",
    [
        {"zero_stage": 0},
        {"zero_stage": 1},
        {"zero_stage": 2},
        {"zero_stage": 3},
        {"zero_stage": 2, "offload_optimizer": "cpu"},
        {"zero_stage": 3, "offload_param": "cpu", "checkpoint_interval": 1},
    ],
    ids=str,
)
def test_a_composed_trial_trains_whole_steps_of_a_smaller_batch(
    run_trial: RunTrial, tiny: Workload, knobs: dict[str, Any]
) -> None:
    long = replace(tiny, global_batch_size=64)
    arguments: dict[str, Any] = {"precision": "fp32", "learning_rate": 1e-3, "timed_steps": 3}
    composed = run_trial(workload=long, composes=True, **arguments, **knobs).measurement
    small = run_trial(
        workload=replace(tiny, global_batch_size=16), **arguments, **knobs
    ).measurement
    assert composed is not None
    assert small is not None
    assert composed.share_run == 4 / 16
    assert small.share_run == 1.0
    # DeepSpeed's accumulation and loss scaling are its own: nothing else is learned.
    assert composed.losses == pytest.approx(small.losses, rel=1e-6)
    assert composed.optimizer_state_bytes == small.optimizer_state_bytes
    assert composed.tokens_per_second == pytest.approx(long.tokens_per_step / composed.step_time_s)
    # By structure: four times the micro-steps, so longer than the part that was run.
    assert composed.step_time_s > small.step_time_s
