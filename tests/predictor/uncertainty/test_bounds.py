"""The interval of a step time: what widens it, and what narrows it."""

from __future__ import annotations

from typing import Any

import pytest

from autotune.machine.hardware_spec import read_hardware
from autotune.predictor import AnalyticPredictor
from autotune.question.workload import Workload, load_model_shape
from autotune.space.strategy import Strategy

WORKLOAD = Workload(model=load_model_shape("7B"), seq_len=1024, global_batch_size=64)


def ratio(devices: str = "H100-80GB", **knobs: Any) -> float:
    """Upper bound over lower."""
    host = read_hardware(devices).host
    strategy = Strategy.from_dict({"zero_stage": 1, "micro_batch_size": 8} | knobs)
    said = AnalyticPredictor(WORKLOAD, host).predict(strategy)
    assert said.step_time_lower_s is not None
    assert said.step_time_upper_s is not None
    assert said.step_time_lower_s < said.step_time_s < said.step_time_upper_s
    return said.step_time_upper_s / said.step_time_lower_s


@pytest.mark.parametrize(
    "knobs",
    [
        {"mlp_tiles": 4},
        {"offload_optimizer": "cpu"},
        {"optimizer": "muon"},
        {"torch_compile": True},
        {"zero_stage": 3, "offload_param": "cpu"},
    ],
    ids=str,
)
def test_a_technique_that_was_seldom_seen_widens_the_interval(knobs: dict[str, Any]) -> None:
    assert ratio(**knobs) > 1.05 * ratio()


def test_several_devices_widen_the_interval() -> None:
    assert ratio("8xH100-80GB") > ratio()


def test_a_host_that_may_be_slower_than_the_device_moves_the_upper_bound() -> None:
    def above(size: int) -> float:
        strategy = Strategy(zero_stage=1, micro_batch_size=size)
        host = read_hardware("H100-80GB").host
        said = AnalyticPredictor(WORKLOAD, host).predict(strategy)
        assert said.step_time_upper_s is not None
        return said.step_time_upper_s / said.step_time_s

    assert above(1) > above(32)
