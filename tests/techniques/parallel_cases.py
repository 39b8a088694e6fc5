"""Losses of small models of many architectures on one rank or several.

SGD at a learning rate of one, with DeepSpeed's clipping at a norm of one: a gradient that is wrong
by a factor shows in the losses, which AdamW would hide.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from conftest import RunTrial
from small_models import small_workload

from autotune.question.workload import Workload
from autotune.trials.trial import Measurement

NUM_STEPS = 5

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "vocab_size": 512,
}

_CHANGES: dict[str, dict[str, Any]] = {
    # Sequence parallelism needs a window that no sample outgrows.
    "mistral": {"sliding_window": 32},
}


def parallel_workload(model_type: str, **changes: Any) -> Workload:
    """Four micro-batches of two samples on one data-parallel rank, 32 tokens a sample."""
    return small_workload(model_type, **SIZES | _CHANGES.get(model_type, {}) | changes)


LLAMA = parallel_workload("llama")


def train(run_trial: RunTrial, workload: Workload, num_ranks: int, **knobs: Any) -> Measurement:
    """Six optimizer steps in fp32."""
    sgd = {"precision": "fp32", "micro_batch_size": 2, "optimizer": "sgd", "lora_rank": 0}
    outcome = run_trial(
        workload=workload, num_ranks=num_ranks, learning_rate=1.0, timed_steps=5, **sgd | knobs
    )
    assert outcome.measurement is not None, outcome.failure
    assert len(outcome.measurement.losses) >= NUM_STEPS
    return outcome.measurement


_ONE_RANK: dict[str, Measurement] = {}


def train_on_one_rank(run_trial: RunTrial, workload: Workload, **knobs: Any) -> Measurement:
    """The same, on one rank; what was trained before is not trained again."""
    config = {key: value for key, value in workload.model.config.items() if key[0] != "_"}
    key = json.dumps([config, str(workload.method), knobs], sort_keys=True, default=str)
    if key not in _ONE_RANK:
        _ONE_RANK[key] = train(run_trial, workload, 1, **knobs)
    return _ONE_RANK[key]


def largest_difference(measured: Measurement, expected: Measurement) -> float:
    """Of the losses of the common steps, relative."""
    return max(_differences(measured, expected))


def _differences(measured: Measurement, expected: Measurement) -> Iterator[float]:
    for own, other in zip(measured.losses, expected.losses, strict=False):
        yield abs(own - other) / other
