"""Kernels of Triton and FlashAttention 2 are for GPUs of compute capability 8.0 or above."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from autotune.machine.hardware import DEVICE_KINDS, Hardware
from autotune.machine.hardware_spec import read_hardware
from autotune.plan.plan import ASSUMED_SOFTWARE
from autotune.question.workload import Workload
from autotune.space.compatibility import conflict
from autotune.space.space_file import parse_search_space
from autotune.space.strategy import Strategy

KERNELS: list[dict[str, Any]] = [
    {"fused_kernels": True},
    {"torch_compile": True},
    {"attention": "flash_attention_2"},
    {"optimizer": "muon"},
]


def _words(knobs: dict[str, Any], workload: Workload, hardware: Hardware) -> str | None:
    strategy = Strategy.from_dict({"precision": "fp16", "zero_stage": 1} | knobs)
    return conflict(strategy, workload, hardware, ASSUMED_SOFTWARE)


@pytest.mark.parametrize("knobs", KERNELS, ids=str)
def test_a_gpu_below_8_0_is_refused_kernels_that_it_cannot_run(
    tiny: Workload, knobs: dict[str, Any]
) -> None:
    v100 = read_hardware("2xV100-32GB").host
    words = _words(knobs, tiny, v100) or ""
    assert next(iter(knobs)) in words
    assert "compute capability 8.0 or above" in words
    assert _words(knobs, tiny, replace(v100, compute_capability=(8, 0))) is None


@pytest.mark.parametrize("name", DEVICE_KINDS)
def test_every_kind_has_the_kernels_of_its_compute_capability(name: str) -> None:
    host = read_hardware(name).host
    assert host.compute_capability == DEVICE_KINDS[name].compute_capability
    assert host.runs_triton == (DEVICE_KINDS[name].compute_capability >= (8, 0))


def test_a_search_on_a_v100_is_proposed_none_of_them(tiny: Workload) -> None:
    v100 = read_hardware("2xV100-32GB").host
    text = """\
knobs:
  zero_stage: [0, 1, 2, 3]
  precision: [fp16, fp32]
  fused_kernels: [true, false]
  attention: [sdpa, eager, flash_attention_2]
  torch_compile: [true, false]
"""
    space = parse_search_space(text, "x.yaml", tiny, v100, ASSUMED_SOFTWARE)
    proposed = list(space.strategies())
    assert len(proposed) == 16
    for strategy in proposed:
        assert not strategy.fused_kernels
        assert not strategy.torch_compile
        assert strategy.attention != "flash_attention_2"


def test_of_a_study_that_kept_no_compute_capability_bf16_tells(tiny: Workload) -> None:
    old = replace(read_hardware("2xA100-80GB").host, compute_capability=None)
    assert _words({"fused_kernels": True}, tiny, old) is None
    assert "has less" in (
        _words({"fused_kernels": True}, tiny, replace(old, supports_bf16=False)) or ""
    )
