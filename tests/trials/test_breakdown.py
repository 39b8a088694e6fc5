"""The rows of a memory breakdown: complete, and named as the field names them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sample_study import HARDWARE, LORA_WORKLOAD, WORKLOAD, prediction

from autotune.knob_values import Offload, Optimizer
from autotune.predictor import AnalyticPredictor
from autotune.question.workload import Workload
from autotune.space.strategy import Strategy
from autotune.trials.breakdown import allocated_bytes, breakdown_rows

ROWS = [
    "parameters",
    "gradients",
    "master weights",
    "optimizer states",
    "activations",
    "logits and loss",
    "buckets and engine buffers",
    "flattened parameters",
    "workspace and allocator",
    "context",
]

STRATEGIES = [
    Strategy(zero_stage=0, micro_batch_size=16),
    Strategy(zero_stage=1, micro_batch_size=1),
    Strategy(zero_stage=2, offload_optimizer=Offload.CPU),
    Strategy(zero_stage=3, checkpoint_interval=2, micro_batch_size=32),
    Strategy(zero_stage=3, zero_hpz_partition_size=2),
    Strategy(zero_stage=1, optimizer=Optimizer.PAGED_ADAMW_8BIT),
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
@pytest.mark.parametrize("workload", [WORKLOAD, LORA_WORKLOAD], ids=["full", "lora"])
def test_every_part_of_a_prediction_has_its_row_and_the_device_is_their_sum(
    strategy: Strategy, workload: Workload
) -> None:
    predicted = AnalyticPredictor(workload, HARDWARE).predict(strategy)
    rows = breakdown_rows(predicted)
    assert list(rows) == ROWS
    assert sum(rows.values()) == predicted.peak_device_bytes
    assert rows["context"] == predicted.device_overhead_bytes
    assert rows["parameters"] > 0


def test_a_part_that_is_not_known_is_a_row_of_its_own_name() -> None:
    odd = replace(prediction(10), breakdown_bytes={"weights": 3, "novelty": 4})
    assert breakdown_rows(odd)["novelty"] == 4


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_live_tensors_of_older_records_are_what_is_no_slack(strategy: Strategy) -> None:
    predicted = AnalyticPredictor(WORKLOAD, HARDWARE).predict(strategy)
    assert allocated_bytes(predicted) == predicted.peak_allocated_bytes
    assert allocated_bytes(replace(predicted, peak_allocated_bytes=0)) == (
        predicted.peak_allocated_bytes
    )
