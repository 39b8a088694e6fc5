"""Reserved peaks: allocations of the engine around those of a model's code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.hardware import DEVICE_KINDS, DeviceType, Hardware
from autotune.predictor.memory import MemoryModel
from autotune.profile import AllocationScript, Recipe
from autotune.profile.script_trace import trace_script
from autotune.strategy import Strategy
from autotune.workload import Method, ModelShape, Workload, load_model_shape

RECORDED = Path(__file__).parent / "allocations"
H100 = DEVICE_KINDS["H100-80GB"]
HARDWARE = Hardware(
    device_type=DeviceType.CUDA,
    device_kind=H100.name,
    num_devices=1,
    device_memory_bytes=H100.memory_bytes,
    host_memory_bytes=256 * 2**30,
    flops_per_s=H100.flops_per_s,
    memory_bytes_per_s=H100.memory_bytes_per_s,
)


def recorded(name: str) -> tuple[Workload, Strategy, dict[str, Any]]:
    """A trial on one H100, and what it measured."""
    record = json.loads((RECORDED / f"{name}.json").read_text(encoding="utf-8"))
    trial = record["trial"]
    shape = load_model_shape(trial["model"])
    config = {**shape.config, "num_hidden_layers": trial["layers"]}
    workload = Workload(
        model=replace(shape, num_hidden_layers=trial["layers"], config=config),
        seq_len=trial["seq"],
        global_batch_size=trial["batch"],
        method=Method(trial.get("method", "full")),
    )
    return workload, Strategy.from_dict(trial["knobs"]), record


def no_script(*_: Any) -> str:
    return "not known"


@pytest.mark.parametrize("name", ["z1g2ck", "z2g2", "z1tiles", "lora"])
def test_traced_and_simulated_a_trial_takes_what_it_was_measured_to(name: str) -> None:
    workload, strategy, record = recorded(name)
    peak = MemoryModel(workload, HARDWARE, trace_script).peak(strategy)
    assert peak.expected_bytes == pytest.approx(record["peak_reserved_bytes"], rel=0.01)
    assert peak.allocated_bytes == pytest.approx(record["peak_allocated_bytes"], rel=0.005)


def test_without_a_script_the_counted_peak_stays() -> None:
    workload, strategy, _ = recorded("z1g2ck")
    counted = MemoryModel(workload, HARDWARE).peak(strategy)
    assert MemoryModel(workload, HARDWARE, no_script).peak(strategy) == counted


@pytest.mark.parametrize(
    "knobs",
    [
        {"torch_compile": True},
        {"optimizer": "muon", "zero_stage": 2},
        {"mlp_precision": "fp16"},
        {"zero_stage": 3, "checkpoint_interval": 1},
        {"offload_checkpoints": "cpu", "checkpoint_interval": 1},
        {"zero_stage": 0, "precision": "fp32"},
    ],
)
def test_no_script_is_asked_for_where_allocations_are_not_known(knobs: dict[str, Any]) -> None:
    def refuse(shape: ModelShape, recipe: Recipe, seq_len: int) -> AllocationScript:
        raise AssertionError(recipe)

    workload, _, _ = recorded("z1g2ck")
    MemoryModel(workload, HARDWARE, refuse).peak(Strategy.from_dict({"zero_stage": 1} | knobs))


def test_a_breakdown_sums_up_to_the_simulated_peak() -> None:
    workload, strategy, _ = recorded("z1g2ck")
    peak = MemoryModel(workload, HARDWARE, trace_script).peak(strategy)
    assert sum(peak.breakdown_bytes.values()) == peak.expected_bytes
    assert peak.lower_bytes < peak.expected_bytes < peak.upper_bytes
