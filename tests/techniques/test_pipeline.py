"""Pipelines over two and four CPU ranks: real engines, against the run of one rank."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RunTrial
from pipeline_cases import PIPELINED, build_stage, pipeline_workload
from plain_training import printed_losses
from small_models import TIED, write_strategy

from autotune.machine.hardware import DeviceType
from autotune.question.workload import Method, Workload
from autotune.space.deepspeed_config import deepspeed_config
from autotune.space.strategy import Strategy
from autotune.trials.trial import Measurement, TrialSpec

pytestmark = pytest.mark.slow

LEARNING_RATE = 0.5
"""Of SGD, whose steps show a gradient of the wrong size; gradients are clipped at 1."""


def _measured(run_trial: RunTrial, workload: Workload, **knobs: Any) -> Measurement:
    sgd = {"precision": "fp32", "optimizer": "sgd", "learning_rate": LEARNING_RATE}
    outcome = run_trial(workload=workload, timed_steps=4, **sgd | knobs)
    assert outcome.failure is None, outcome.failure
    assert outcome.measurement is not None
    return outcome.measurement


@pytest.fixture(scope="module")
def one_rank(run_trial: RunTrial) -> Callable[..., Measurement]:
    """The run of one rank, once for each question: `one_rank(name, method, is_tied, **knobs)`."""

    @cache
    def run(
        name: str = "llama", method: Method = Method.FULL, is_tied: bool = False, **knobs: Any
    ) -> Measurement:
        workload = pipeline_workload(name, **(TIED if is_tied else {}))
        return _measured(run_trial, replace(workload, method=method), num_ranks=1, **knobs)

    return run


def _check(pipeline: Measurement, plain: Measurement, *, rel: float = 1e-5) -> None:
    num_steps = min(len(pipeline.losses), len(plain.losses))
    assert num_steps >= 5
    assert pipeline.losses[:num_steps] == pytest.approx(plain.losses[:num_steps], rel=rel)
    assert pipeline.num_parameters == plain.num_parameters
    assert pipeline.num_trainable_parameters == plain.num_trainable_parameters


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"zero_stage": 1},
        {"checkpoint_interval": 1},
        {"checkpoint_interval": 2, "zero_stage": 1},
        {"checkpoint_interval": 1, "checkpoint_scope": "attention"},
        {"mlp_tiles": 2, "loss_tiles": 2},
    ],
    ids=str,
)
def test_two_stages_learn_what_one_rank_learns(
    run_trial: RunTrial,
    one_rank: Callable[..., Measurement],
    knobs: dict[str, Any],
) -> None:
    pipeline = _measured(run_trial, pipeline_workload(), pipeline_parallel_size=2, **knobs)
    _check(pipeline, one_rank())


@pytest.mark.parametrize(("num_stages", "zero_stage"), [(2, 0), (2, 1), (4, 1)])
def test_four_ranks_learn_what_one_rank_learns(
    run_trial: RunTrial,
    one_rank: Callable[..., Measurement],
    num_stages: int,
    zero_stage: int,
) -> None:
    # Two stages: two pipelines beside each other, with samples of their own.
    pipeline = _measured(
        run_trial,
        pipeline_workload(),
        num_ranks=4,
        pipeline_parallel_size=num_stages,
        zero_stage=zero_stage,
        micro_batch_size=1,
    )
    _check(pipeline, one_rank())


@pytest.mark.parametrize("name", [name for name in PIPELINED if name != "llama"])
def test_architecture_learns_in_stages_what_it_learns_on_one_rank(
    run_trial: RunTrial, one_rank: Callable[..., Measurement], name: str
) -> None:
    attention = {"attention": "eager"} if name == "gemma2" else {}
    pipeline = _measured(run_trial, pipeline_workload(name), pipeline_parallel_size=2, **attention)
    _check(pipeline, one_rank(name, **attention))


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_a_tied_embedding_stays_the_same_in_the_first_and_the_last_stage(
    run_trial: RunTrial, one_rank: Callable[..., Measurement], zero_stage: int
) -> None:
    workload = pipeline_workload(**TIED)
    knobs = {"pipeline_parallel_size": 2, "zero_stage": zero_stage, "num_ranks": 4}
    pipeline = _measured(run_trial, workload, micro_batch_size=1, **knobs)
    _check(pipeline, one_rank(is_tied=True))


@pytest.mark.parametrize(
    ("zero_stage", "precision", "is_tied"),
    [(0, "bf16", False), (0, "bf16", True), (1, "bf16", True), (1, "fp16", False)],
)
def test_stages_learn_in_16_bit(
    run_trial: RunTrial,
    one_rank: Callable[..., Measurement],
    zero_stage: int,
    precision: str,
    is_tied: bool,
) -> None:
    if precision == "fp16" and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        pytest.skip("DeepSpeed refuses fp16 on this CPU")
    knobs = {"precision": precision, "zero_stage": zero_stage}
    workload = pipeline_workload(**(TIED if is_tied else {}))
    pipeline = _measured(run_trial, workload, pipeline_parallel_size=2, **knobs)
    # DeepSpeed adds up gradients in bf16 or fp32, and so in other orders.
    plain = one_rank(is_tied=is_tied, **knobs | {"zero_stage": 1})
    _check(pipeline, plain, rel=2e-3)


@pytest.mark.parametrize(
    "knobs",
    [
        {"optimizer": "adamw"},
        {"optimizer": "adamw_8bit"},
        {"optimizer": "adafactor"},
        {"optimizer": "adamw", "zero_stage": 1, "offload_optimizer": "cpu"},
    ],
    ids=str,
)
def test_optimizer_trains_stages(
    run_trial: RunTrial,
    one_rank: Callable[..., Measurement],
    knobs: dict[str, Any],
) -> None:
    pipeline = _measured(
        run_trial,
        pipeline_workload(),
        pipeline_parallel_size=2,
        **knobs | {"learning_rate": 1e-3},
    )
    _check(pipeline, one_rank(optimizer=knobs["optimizer"], learning_rate=1e-3))
    assert (
        pipeline.optimizer_state_bytes
        < 0.7 * one_rank(optimizer=knobs["optimizer"], learning_rate=1e-3).optimizer_state_bytes
    )


@pytest.mark.parametrize(
    ("method", "precision", "is_tied"),
    [(Method.LORA, "fp32", False), (Method.LORA, "fp32", True), (Method.QLORA, "bf16", True)],
)
def test_adapters_train_in_stages(
    run_trial: RunTrial,
    one_rank: Callable[..., Measurement],
    method: Method,
    precision: str,
    is_tied: bool,
) -> None:
    knobs = {"lora_rank": 4, "precision": precision, "zero_stage": 1, "learning_rate": 5.0}
    workload = replace(pipeline_workload(**(TIED if is_tied else {})), method=method)
    pipeline = _measured(
        run_trial,
        workload,
        num_ranks=4,
        pipeline_parallel_size=4,
        checkpoint_interval=1,
        **knobs,
    )
    plain = one_rank(method=method, is_tied=is_tied, **knobs)
    _check(pipeline, plain, rel=1e-5 if method is Method.LORA else 2e-3)


def test_a_rank_says_what_it_is_doing(run_trial: RunTrial, tmp_path: Path) -> None:
    _measured(run_trial, pipeline_workload(), pipeline_parallel_size=2, folder=tmp_path)
    for rank in range(2):
        assert (tmp_path / f"rank{rank}.phase").read_text().strip() == "step"


_PLAIN_TRAINING = '''
"""Plain DeepSpeed with an exported strategy: a user's whole model, with the trial's weights."""
import json, os, sys
from dataclasses import replace
import deepspeed, torch
import autotune
from autotune.trials.trial import TrialSpec
from autotune.worker.model import build_model
from autotune.worker.samples import micro_batch

spec = TrialSpec.from_dict(json.load(open("trial.json")))
whole = replace(spec.strategy, pipeline_parallel_size=1)
deepspeed.init_distributed("gloo")
model = build_model(spec.workload, whole, device=torch.device("cpu"), deepspeed_config={}, seed=0)
model = autotune.pipeline(model, "strategy.yaml")
engine, *_ = deepspeed.initialize(
    model=model,
    model_parameters=[p for p in model.parameters() if p.requires_grad],
    optimizer=autotune.create_optimizer(model, "strategy.yaml"),
    config="ds_config.json",
)
data_rank = engine.mpu.get_data_parallel_rank()
for step in range(4):
    batches = [
        micro_batch(spec, data_rank=data_rank, step=step, micro=micro)
        for micro in range(engine.gradient_accumulation_steps())
    ]
    loss = engine.train_batch(((batch, batch), ()) for batch in batches)
    if torch.distributed.get_rank() == 0:
        print("LOSS", float(loss), flush=True)
engine.save_checkpoint("saved")
torch.distributed.barrier()
os._exit(0)
'''


def test_an_exported_pipeline_trains_in_fresh_processes_with_the_losses_of_its_trial(
    run_trial: RunTrial, tmp_path: Path
) -> None:
    workload = pipeline_workload(**TIED)
    knobs = {"optimizer": "adamw_8bit", "learning_rate": 1e-3, "checkpoint_interval": 2}
    trial = _measured(run_trial, workload, pipeline_parallel_size=2, zero_stage=1, **knobs)
    strategy = Strategy.from_dict(
        {"pipeline_parallel_size": 2, "zero_stage": 1, "micro_batch_size": 2}
        | {"precision": "fp32", "optimizer": "adamw_8bit", "checkpoint_interval": 2}
    )
    write_strategy(tmp_path, strategy)
    config = deepspeed_config(
        workload, strategy, num_devices=2, device_type=DeviceType.CPU, learning_rate=1e-3
    )
    (tmp_path / "ds_config.json").write_text(json.dumps(config))
    spec = TrialSpec(workload=workload, strategy=strategy, num_ranks=2)
    (tmp_path / "trial.json").write_text(json.dumps(spec.to_dict()))
    (tmp_path / "train.py").write_text(_PLAIN_TRAINING)
    losses = printed_losses(tmp_path)
    assert losses == pytest.approx(trial.losses[:4], rel=1e-6)
    _check_that_a_checkpoint_has_the_models_own_names(tmp_path / "saved", workload)


def _check_that_a_checkpoint_has_the_models_own_names(saved: Path, workload: Workload) -> None:
    states = [torch.load(path) for path in saved.glob("*/layer_*-model_states.pt")]
    names = {name.removeprefix("model.") for state in states for name in state}
    assert names == set(build_stage(workload, 1, 0).state_dict())
