"""Fused kernels are for the architectures that the installed Liger says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from autotune.machine.hardware import DEVICE_KINDS, DeviceType, Hardware
from autotune.machine.software import Software
from autotune.question.workload import Workload
from autotune.space.compatibility import conflict, kernels
from autotune.space.strategy import Strategy

SOFTWARE = Software(versions={}, has_liger=True, has_compiler=True)
FUSED = Strategy(zero_stage=1, fused_kernels=True)


@pytest.fixture
def h100() -> Hardware:
    kind = DEVICE_KINDS["H100-80GB"]
    return Hardware(
        device_type=DeviceType.CUDA,
        device_kind="H100-80GB",
        num_devices=1,
        device_memory_bytes=kind.memory_bytes,
        host_memory_bytes=2**38,
        flops_per_s=kind.flops_per_s,
        memory_bytes_per_s=kind.memory_bytes_per_s,
        compute_capability=(9, 0),
    )


def _asked(tiny: Workload, **changes: Any) -> Workload:
    return replace(tiny, model=replace(tiny.model, **changes))


@pytest.mark.parametrize(
    ("told", "model", "words"),
    [
        ({"llama", "qwen3_moe"}, {"model_type": "qwen3_moe"}, None),
        ({"llama"}, {"model_type": "qwen3_moe"}, "installed Liger has no fused kernels for qwen3"),
        (None, {"model_type": "qwen3_moe"}, "no Liger is installed here to say"),
        (None, {"model_type": "llama"}, None),
        (
            {"qwen2"},
            {"model_type": "qwen2", "whole_type": "qwen2_5_vl", "tower_parameters": 9},
            "for qwen2_5_vl",
        ),
        ({"qwen2"}, {"model_type": "qwen2", "whole_type": "qwen2_5_vl"}, None),
    ],
)
def test_what_liger_says_is_the_rule(
    told: set[str] | None,
    model: dict[str, Any],
    words: str | None,
    tiny: Workload,
    h100: Hardware,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "liger_model_types", lambda: told)
    refusal = conflict(FUSED, _asked(tiny, **model), h100, SOFTWARE)
    assert refusal is None if words is None else words in (refusal or "")
