"""Ulysses over two and four CPU ranks learns what one rank learns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from conftest import RunTrial
from parallel_cases import LLAMA, largest_difference, parallel_workload, train, train_on_one_rank

from autotune.question.workload import Method
from autotune.space.compatibility.parallel import SEQUENCE_PARALLEL_MODEL_TYPES

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("model_type", sorted(SEQUENCE_PARALLEL_MODEL_TYPES))
def test_architecture_has_the_losses_of_one_rank(run_trial: RunTrial, model_type: str) -> None:
    model = parallel_workload(model_type)
    one, two = (
        train_on_one_rank(run_trial, model),
        train(run_trial, model, 2, sequence_parallel_size=2),
    )
    assert largest_difference(two, one) < 1e-4
    assert two.num_parameters == one.num_parameters


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_beside_data_parallel_ranks_under_every_zero_stage(
    run_trial: RunTrial, zero_stage: int
) -> None:
    one = train_on_one_rank(run_trial, LLAMA)
    four = train(
        run_trial,
        LLAMA,
        4,
        sequence_parallel_size=2,
        zero_stage=zero_stage,
        checkpoint_interval=2,
    )
    assert largest_difference(four, one) < 1e-4
    assert four.tokens_per_second == pytest.approx(LLAMA.tokens_per_step / four.step_time_s)
    if zero_stage:
        # States are divided over data and sequence ranks alike.
        assert four.optimizer_state_bytes == pytest.approx(one.optimizer_state_bytes / 4)


@pytest.mark.parametrize(
    "knobs",
    [
        {"loss_tiles": 2, "mlp_tiles": 2},
        {"checkpoint_interval": 1, "checkpoint_scope": "attention"},
        {"checkpoint_interval": 1, "offload_checkpoints": "cpu"},
        {"micro_batch_size": 4},
    ],
    ids=str,
)
def test_beside_other_neutral_knobs(run_trial: RunTrial, knobs: dict[str, Any]) -> None:
    one = train_on_one_rank(run_trial, LLAMA)
    two = train(run_trial, LLAMA, 2, sequence_parallel_size=2, **knobs)
    assert largest_difference(two, one) < 1e-4


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_lora_has_the_losses_of_one_rank(run_trial: RunTrial, zero_stage: int) -> None:
    lora = replace(LLAMA, method=Method.LORA)
    one = train_on_one_rank(run_trial, lora, lora_rank=4)
    two = train(
        run_trial,
        lora,
        2,
        sequence_parallel_size=2,
        lora_rank=4,
        zero_stage=zero_stage,
        checkpoint_interval=1,
    )
    assert largest_difference(two, one) < 1e-4


def test_more_ranks_than_key_value_heads_repeat_the_heads(run_trial: RunTrial) -> None:
    model = parallel_workload("llama", num_key_value_heads=1)
    one = train_on_one_rank(run_trial, model)
    four = train(run_trial, model, 4, sequence_parallel_size=4, zero_stage=1)
    assert largest_difference(four, one) < 1e-4
