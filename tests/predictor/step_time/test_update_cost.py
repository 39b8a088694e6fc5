"""The optimizer's own step: against one H200, and against the data sheets of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autotune.knob_values import MasterWeights, Optimizer
from autotune.machine.hardware import DEVICE_KINDS, DeviceType, Hardware
from autotune.predictor.memory.states import StatesModel
from autotune.predictor.step_time.launch_overhead import LaunchOverheadModel
from autotune.predictor.step_time.optimizer_step import OptimizerStepModel
from autotune.question.workload import Workload, load_model_shape
from autotune.space.strategy import Strategy

RECORD = Path(__file__).parents[3] / "results/optimizer-update/h200.jsonl"
FLAT = [
    line
    for line in map(json.loads, RECORD.read_text(encoding="utf-8").splitlines()[1:])
    if line["layout"] != "tensors"
]
EIGHT_BIT = (Optimizer.ADAMW_8BIT, Optimizer.PAGED_ADAMW_8BIT, Optimizer.LION_8BIT)


def hardware(kind: str) -> Hardware:
    line = DEVICE_KINDS[kind]
    return Hardware(
        device_type=DeviceType.CUDA,
        device_kind=kind,
        num_devices=1,
        device_memory_bytes=line.memory_bytes,
        host_memory_bytes=2**40,
        flops_per_s=line.flops_per_s,
        memory_bytes_per_s=line.memory_bytes_per_s,
        supports_bf16=line.supports_bf16,
        supports_fp8=line.supports_fp8,
    )


def workload(model: str = "1.1B") -> Workload:
    return Workload(model=load_model_shape(model), seq_len=128, global_batch_size=1)


def optimizer_s(kind: str, strategy: Strategy, model: str = "1.1B") -> float:
    machine = hardware(kind)
    states = StatesModel(workload(model), machine)
    shard = states.shards(strategy)[0]
    return OptimizerStepModel(workload(model), machine, states).optimizer_s(strategy, shard)


@pytest.mark.parametrize(
    "line", FLAT, ids=lambda line: f"{line['model']} {line['layout']} {line['optimizer']}"
)
def test_a_flat_partition_is_stepped_over_in_the_time_that_was_measured(
    line: dict[str, Any],
) -> None:
    optimizer = Optimizer(line["optimizer"])
    is_bf16 = line["layout"] == "flat bf16"
    strategy = Strategy(
        zero_stage=1,
        optimizer=optimizer,
        master_weights=MasterWeights.BF16 if is_bf16 else MasterWeights.FP32,
    )
    # Of those whose memory takes longer, one rate stands for all kernels.
    tolerance = 0.05 if optimizer in EIGHT_BIT else 0.42
    predicted = optimizer_s("H200", strategy, line["model"])
    assert predicted == pytest.approx(line["step_s"], rel=tolerance)


@pytest.mark.parametrize("kind", ["H100-80GB", "H200", "A100-80GB", "V100-32GB"])
@pytest.mark.parametrize("optimizer", [Optimizer.ADAMW_8BIT, Optimizer.PAGED_ADAMW_8BIT])
def test_8_bit_adam_takes_longer_than_adamw_where_memory_is_fast(
    kind: str, optimizer: Optimizer
) -> None:
    plain = optimizer_s(kind, Strategy(zero_stage=1))
    assert optimizer_s(kind, Strategy(zero_stage=1, optimizer=optimizer)) > plain


def test_8_bit_takes_as_long_whatever_the_precision_of_the_master() -> None:
    in_fp32, in_bf16 = (
        optimizer_s(
            "H100-80GB",
            Strategy(zero_stage=1, optimizer=Optimizer.ADAMW_8BIT, master_weights=master),
        )
        for master in MasterWeights
    )
    assert in_fp32 == in_bf16


def test_bitsandbytes_waits_behind_each_tensor_that_is_not_flattened() -> None:
    host = LaunchOverheadModel(workload(), hardware("H100-80GB"))
    plain, flat, single = (
        host.step_s(Strategy(zero_stage=stage, optimizer=optimizer), 22)
        for stage, optimizer in (
            (0, Optimizer.ADAMW),
            (1, Optimizer.ADAMW_8BIT),
            (0, Optimizer.ADAMW_8BIT),
        )
    )
    assert plain == flat < single
