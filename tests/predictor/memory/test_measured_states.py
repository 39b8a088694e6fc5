"""Predicted optimizer states against those of real engines, two CPU ranks."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import RunTrial

from autotune.machine.hardware import Hardware
from autotune.predictor.memory.states import StatesModel
from autotune.question.workload import Workload
from autotune.space.strategy import Strategy

pytestmark = pytest.mark.slow


def predicted_states(workload: Workload, hardware: Hardware, knobs: dict[str, Any]) -> int:
    """Of the worst stage."""
    strategy = Strategy.from_dict({"micro_batch_size": 2} | knobs)
    model = StatesModel(workload, hardware)
    return max(model.of(strategy, shard).optimizer_states for shard in model.shards(strategy))


@pytest.mark.parametrize(
    "knobs",
    [
        {"zero_stage": 0, "tensor_parallel_size": 2},
        {"zero_stage": 0, "pipeline_parallel_size": 2},
        {"zero_stage": 1, "sequence_parallel_size": 2},
        {"zero_stage": 0, "optimizer": "adamw_8bit", "precision": "fp32"},
        {"zero_stage": 2, "optimizer": "lion"},
        {"zero_stage": 0, "embedding_precision": "fp32"},
        # The matrix at the border of two partitions has its whole momentum on both ranks.
        {"zero_stage": 1, "optimizer": "muon"},
    ],
    ids=str,
)
def test_predicted_states_are_those_of_the_engine(
    run_trial: RunTrial, tiny: Workload, cpu_hardware: Hardware, knobs: dict[str, Any]
) -> None:
    outcome = run_trial(**{"precision": "bf16"} | knobs)
    assert outcome.measurement is not None, outcome.failure

    # Counters of steps, padding of partitions, and what 8-bit optimizers keep in 32 bit.
    assert outcome.measurement.optimizer_state_bytes == pytest.approx(
        predicted_states(tiny, cpu_hardware, knobs), rel=0.02
    )
