"""Ulysses over two and four CPU ranks learns what one rank learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import RunTrial
from parallel_cases import largest_difference, train, train_on_one_rank, workload

from autotune.compatibility.parallel import SEQUENCE_PARALLEL_MODEL_TYPES
from autotune.trial import Measurement
from autotune.workload import Method, Workload

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    return workload(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def one_rank(run_trial: RunTrial, llama: Workload) -> Measurement:
    """Llama without any technique."""
    return train_on_one_rank(run_trial, llama)


@pytest.mark.parametrize("model_type", sorted(SEQUENCE_PARALLEL_MODEL_TYPES))
def test_architecture_has_the_losses_of_one_rank(
    run_trial: RunTrial, tmp_path: Path, model_type: str
) -> None:
    model = workload(tmp_path, model_type)
    one, two = (
        train_on_one_rank(run_trial, model),
        train(run_trial, model, 2, sequence_parallel_size=2),
    )
    assert largest_difference(two, one) < 1e-4
    assert two.num_parameters == one.num_parameters


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_beside_data_parallel_ranks_under_every_zero_stage(
    run_trial: RunTrial, llama: Workload, one_rank: Measurement, zero_stage: int
) -> None:
    four = train(
        run_trial,
        llama,
        4,
        sequence_parallel_size=2,
        zero_stage=zero_stage,
        checkpoint_interval=2,
    )
    assert largest_difference(four, one_rank) < 1e-4
    assert four.tokens_per_second == pytest.approx(llama.tokens_per_step / four.step_time_s)
    if zero_stage:
        # States are divided over data and sequence ranks alike.
        assert four.optimizer_state_bytes == pytest.approx(one_rank.optimizer_state_bytes / 4)


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
def test_beside_other_neutral_knobs(
    run_trial: RunTrial, llama: Workload, one_rank: Measurement, knobs: dict[str, Any]
) -> None:
    two = train(run_trial, llama, 2, sequence_parallel_size=2, **knobs)
    assert largest_difference(two, one_rank) < 1e-4


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_lora_has_the_losses_of_one_rank(
    run_trial: RunTrial, llama: Workload, zero_stage: int
) -> None:
    lora = replace(llama, method=Method.LORA)
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


def test_more_ranks_than_key_value_heads_repeat_the_heads(
    run_trial: RunTrial, tmp_path: Path
) -> None:
    model = workload(tmp_path, "llama", num_key_value_heads=1)
    one = train_on_one_rank(run_trial, model)
    four = train(run_trial, model, 4, sequence_parallel_size=4, zero_stage=1)
    assert largest_difference(four, one) < 1e-4
