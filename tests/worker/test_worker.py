"""Real DeepSpeed engines over two CPU ranks: every strategy trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import RunTrial

from autotune.machine.hardware import detect_hardware
from autotune.question.workload import Method, Workload, load_model_shape

pytestmark = pytest.mark.slow

needs_fp16 = pytest.mark.skipif(
    not detect_hardware().supports_fp16, reason="DeepSpeed refuses fp16 on this CPU"
)


def _trains(run_trial: RunTrial, **arguments: Any) -> tuple[float, ...]:
    outcome = run_trial(**arguments)
    assert outcome.failure is None, outcome.failure
    assert outcome.measurement is not None
    assert outcome.measurement.tokens_per_second > 0
    assert outcome.measurement.peak_device_bytes > 0
    return outcome.measurement.losses


@needs_fp16
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_fp16_trains(run_trial: RunTrial, zero_stage: int) -> None:
    _trains(run_trial, zero_stage=zero_stage, precision="fp16")


@pytest.mark.timeout(400)
@pytest.mark.parametrize("master_weights", ["fp32", "bf16"])
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_optimizer_offload_trains(
    run_trial: RunTrial, zero_stage: int, master_weights: str
) -> None:
    # The first one compiles DeepSpeed's CPU Adam.
    _trains(
        run_trial,
        zero_stage=zero_stage,
        offload_optimizer="cpu",
        master_weights=master_weights,
    )


def test_ranks_meet_in_a_folder_of_any_name(run_trial: RunTrial, tmp_path: Path) -> None:
    folder = tmp_path / "a?b#c%20d{e}\tf\ng"
    folder.mkdir()
    outcome = run_trial(folder=folder, micro_batch_size=1)
    assert outcome.measurement is not None, outcome.failure
    assert {path.name for path in tmp_path.iterdir()} == {folder.name}


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
@pytest.mark.parametrize("checkpoint_interval", [0, 2])
def test_lora_trains(
    run_trial: RunTrial, tiny: Workload, zero_stage: int, checkpoint_interval: int
) -> None:
    outcome = run_trial(
        workload=replace(tiny, method=Method.LORA),
        zero_stage=zero_stage,
        lora_rank=8,
        checkpoint_interval=checkpoint_interval,
    )
    assert outcome.measurement is not None, outcome.failure
    expected = tiny.model.num_lora_parameters(8, tiny.lora_targets)
    assert outcome.measurement.num_trainable_parameters == expected


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_qlora_trains(run_trial: RunTrial, tiny: Workload, zero_stage: int) -> None:
    workload = replace(tiny, method=Method.QLORA)
    _trains(
        run_trial, workload=workload, zero_stage=zero_stage, lora_rank=8, checkpoint_interval=1
    )


@pytest.fixture(scope="module")
def plain_losses(run_trial: RunTrial) -> tuple[float, ...]:
    """Five steps in fp32 without any technique."""
    return _trains(run_trial, precision="fp32", timed_steps=3)


@pytest.mark.parametrize(
    "knobs",
    [
        {"zero_stage": 1},
        {"zero_stage": 2},
        {"zero_stage": 3},
        {"checkpoint_interval": 1},
        {"checkpoint_interval": 2},
        {"checkpoint_interval": 3},
        {"checkpoint_interval": 2, "zero_stage": 3},
        {"micro_batch_size": 1},
        {"micro_batch_size": 4},
    ],
    ids=str,
)
def test_neutral_knobs_leave_the_loss_as_it_is(
    run_trial: RunTrial, plain_losses: tuple[float, ...], knobs: dict[str, Any]
) -> None:
    losses = _trains(run_trial, precision="fp32", timed_steps=3, **knobs)
    # With four micro-batches one optimizer step warms up: a step less in all.
    num_common = min(len(losses), len(plain_losses))
    assert num_common >= 4
    assert losses[:num_common] == pytest.approx(plain_losses[:num_common], rel=1e-5)


def test_a_gpt_shaped_preset_trains(run_trial: RunTrial) -> None:
    workload = Workload(model=load_model_shape("125M"), seq_len=16, global_batch_size=2)
    knobs = {"micro_batch_size": 1, "zero_stage": 1, "checkpoint_interval": 4}
    outcome = run_trial(workload=workload, timed_steps=1, **knobs)
    assert outcome.measurement is not None, outcome.failure
    assert outcome.measurement.num_parameters == pytest.approx(
        workload.model.num_parameters, rel=0.001
    )
