"""AutoTP over two and four CPU ranks learns what one rank learns."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import RunTrial
from parallel_cases import LLAMA, largest_difference, parallel_workload, train, train_on_one_rank

from autotune.space.compatibility.parallel import TENSOR_PARALLEL_MODEL_TYPES

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("model_type", sorted(TENSOR_PARALLEL_MODEL_TYPES))
def test_architecture_has_the_losses_of_one_rank(run_trial: RunTrial, model_type: str) -> None:
    model = parallel_workload(model_type)
    one, two = (
        train_on_one_rank(run_trial, model),
        train(run_trial, model, 2, tensor_parallel_size=2),
    )
    assert largest_difference(two, one) < 1e-4
    assert two.num_parameters == one.num_parameters
    # Embeddings may stay whole, the layers do not.
    assert two.optimizer_state_bytes < 0.75 * one.optimizer_state_bytes


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_beside_data_parallel_ranks_under_every_zero_stage(
    run_trial: RunTrial, zero_stage: int
) -> None:
    one = train_on_one_rank(run_trial, LLAMA)
    four = train(
        run_trial,
        LLAMA,
        4,
        tensor_parallel_size=2,
        zero_stage=zero_stage,
        checkpoint_interval=2,
    )
    assert largest_difference(four, one) < 1e-4
    assert four.tokens_per_second == pytest.approx(LLAMA.tokens_per_step / four.step_time_s)


@pytest.mark.parametrize(
    "knobs",
    [
        {"loss_tiles": 2, "mlp_tiles": 2},
        {"checkpoint_interval": 1, "checkpoint_scope": "mlp"},
        {"attention": "eager"},
        {"micro_batch_size": 4},
    ],
    ids=str,
)
def test_beside_other_neutral_knobs(run_trial: RunTrial, knobs: dict[str, Any]) -> None:
    one = train_on_one_rank(run_trial, LLAMA)
    two = train(run_trial, LLAMA, 2, tensor_parallel_size=2, **knobs)
    assert largest_difference(two, one) < 1e-4


def test_a_tied_vocabulary_that_does_not_divide_is_divided_unevenly(run_trial: RunTrial) -> None:
    model = parallel_workload("qwen2", vocab_size=511)
    one = train_on_one_rank(run_trial, model)
    two = train(run_trial, model, 2, tensor_parallel_size=2, zero_stage=1, loss_tiles=2)
    assert largest_difference(two, one) < 1e-4
