"""Which optimizers a strategy, a device and its software refuse, and why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from autotune.errors import ConfigError
from autotune.knob_values import Optimizer
from autotune.machine.hardware import DeviceType, Hardware
from autotune.machine.software import Software
from autotune.question.workload import Workload
from autotune.space.compatibility import conflict
from autotune.space.strategy import Strategy


@pytest.mark.parametrize(
    ("knobs", "reason"),
    [
        ({"optimizer": "adafactor", "zero_stage": 1}, "flat partitions"),
        ({"optimizer": "adafactor", "zero_stage": 3}, "flat partitions"),
        ({"optimizer": "adafactor", "tensor_parallel_size": 2}, "whole matrices"),
        ({"optimizer": "adafactor", "pipeline_parallel_size": 2}, "flat partitions"),
        ({"optimizer": "muon", "tensor_parallel_size": 2}, "whole matrices"),
        ({"optimizer": "muon", "pipeline_parallel_size": 2}, "does not support stages"),
        (
            {"optimizer": "muon", "zero_stage": 3, "zero_quantized_gradients": True},
            "whole gradients",
        ),
    ],
    ids=str,
)
def test_what_an_optimizer_cannot_be_combined_with_is_refused(
    knobs: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        Strategy.from_dict(knobs)


def test_deepspeed_has_no_1_bit_adam() -> None:
    """Why `optimizer` has no such value; where this fails, it can have one."""
    from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS

    assert "onebitadam" not in DEEPSPEED_OPTIMIZERS


def test_paged_states_are_refused_where_nothing_pages_them(
    tiny: Workload, cpu_hardware: Hardware
) -> None:
    paged = Strategy(optimizer=Optimizer.PAGED_ADAMW_8BIT, micro_batch_size=2)
    gpus = replace(cpu_hardware, device_type=DeviceType.CUDA, device_kind="H100-80GB")
    software = Software(versions={})
    assert "needs a GPU" in (conflict(paged, tiny, cpu_hardware, software) or "")
    assert conflict(paged, tiny, gpus, software) is None


def test_muon_is_refused_without_a_compiler(tiny: Workload, cpu_hardware: Hardware) -> None:
    muon = Strategy(optimizer=Optimizer.MUON, micro_batch_size=2)
    assert "compiler" in (conflict(muon, tiny, cpu_hardware, Software(versions={})) or "")
    able = Software(versions={}, has_compiler=True)
    assert conflict(muon, tiny, cpu_hardware, able) is None
