"""Every loss-neutral knob leaves the losses as they are: real engines, fp32, accumulation.

Six optimizer steps at a learning rate that moves the losses, so that a wrong gradient shows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from conftest import RunTrial
from small_models import small_workload

from autotune.knob_values import LossClass
from autotune.question.workload import Workload
from autotune.space.strategy import LOSS_CLASSES

pytestmark = pytest.mark.slow

LEARNING_RATE = 1e-3
NUM_STEPS = 6

PLAIN: dict[str, Any] = {"precision": "fp32", "micro_batch_size": 2}

LAYERS: dict[str, Any] = {"checkpoint_interval": 1}

EXACT: tuple[dict[str, Any], ...] = (
    # Checkpointing, offload, tiles and the split into micro-batches: 1e-5 relative.
    {"micro_batch_size": 1},
    {"micro_batch_size": 4},
    LAYERS,
    {"checkpoint_interval": 2},
    LAYERS | {"checkpoint_scope": "attention"},
    LAYERS | {"checkpoint_scope": "mlp"},
    LAYERS | {"offload_checkpoints": "cpu"},
    {"mlp_tiles": 4},
    {"loss_tiles": 4},
    {"zero_stage": 1, "offload_optimizer": "cpu"},
    {"zero_stage": 2, "offload_optimizer": "cpu"},
    {"zero_stage": 3, "offload_optimizer": "cpu"},
    {"zero_stage": 3, "offload_param": "cpu"},
)

CLOSE: tuple[dict[str, Any], ...] = (
    # Another order of sums: 1e-4 relative.
    {"zero_stage": 1},
    {"zero_stage": 2},
    {"zero_stage": 3},
    {"zero_stage": 2, "reduce_bucket_size": 10_000},
    {"zero_stage": 2, "overlap_comm": False},
    {"attention": "eager"},
    {"torch_compile": True},
    {"tensor_parallel_size": 2},
    {"sequence_parallel_size": 2},
    {"pipeline_parallel_size": 2},
)

MIXTURE: tuple[dict[str, Any], ...] = (
    # Another order of sums: 1e-4 relative, against the same mixture with grouped products.
    {"experts_implementation": "eager"},
    {"experts_implementation": "batched_mm"},
)

NOT_ON_THE_CPU = {
    "fused_kernels": "Liger uses Triton",
    "offload_ratio": "partial offload leaves the rest on the GPU",
}


def _losses(
    run_trial: RunTrial,
    workload: Workload,
    knobs: dict[str, Any],
    learning_rate: float = LEARNING_RATE,
) -> list[float]:
    outcome = run_trial(
        workload=workload, learning_rate=learning_rate, timed_steps=5, **PLAIN | knobs
    )
    assert outcome.failure is None, outcome.failure
    assert outcome.measurement is not None
    return list(outcome.measurement.losses[:NUM_STEPS])


@pytest.fixture(scope="module")
def small(tiny: Workload) -> Workload:
    """Two micro-steps of each of two ranks at the plain strategy."""
    return replace(tiny, seq_len=32, global_batch_size=8)


@pytest.fixture(scope="module")
def plain(run_trial: RunTrial, small: Workload) -> list[float]:
    """The losses of the run without any technique."""
    return _losses(run_trial, small, {})


def test_what_is_learned_moves_the_losses(
    run_trial: RunTrial, small: Workload, plain: list[float]
) -> None:
    unmoved = _losses(run_trial, small, {}, learning_rate=1e-8)
    assert len(plain) == NUM_STEPS
    assert abs(plain[-1] / unmoved[-1] - 1) > 0.01


@pytest.mark.parametrize("knobs", EXACT, ids=str)
def test_losses_equal_the_plain_run(
    run_trial: RunTrial, small: Workload, plain: list[float], knobs: dict[str, Any]
) -> None:
    assert _losses(run_trial, small, knobs) == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("knobs", CLOSE, ids=str)
def test_losses_are_as_in_the_plain_run(
    run_trial: RunTrial, small: Workload, plain: list[float], knobs: dict[str, Any]
) -> None:
    assert _losses(run_trial, small, knobs) == pytest.approx(plain, rel=1e-4)


@pytest.fixture(scope="module")
def mixture() -> Workload:
    """The same batches for a model of four routed experts, of which two are at work."""
    return small_workload("mixtral")


@pytest.fixture(scope="module")
def plain_mixture(run_trial: RunTrial, mixture: Workload) -> list[float]:
    """The losses of the mixture without any technique."""
    return _losses(run_trial, mixture, {})


@pytest.mark.parametrize("knobs", MIXTURE, ids=str)
def test_losses_of_a_mixture_are_as_in_its_plain_run(
    run_trial: RunTrial, mixture: Workload, plain_mixture: list[float], knobs: dict[str, Any]
) -> None:
    assert _losses(run_trial, mixture, knobs) == pytest.approx(plain_mixture, rel=1e-4)


def test_every_neutral_knob_is_held_against_the_plain_run() -> None:
    neutral = {knob for knob, kind in LOSS_CLASSES.items() if kind is LossClass.NEUTRAL}
    tested = {knob for knobs in EXACT + CLOSE + MIXTURE for knob in knobs}
    # Batching is held where samples differ in length: `test_batching.py`.
    elsewhere = {"zero_hpz_partition_size", "batching"}
    assert neutral - tested == set(NOT_ON_THE_CPU) | elsewhere
