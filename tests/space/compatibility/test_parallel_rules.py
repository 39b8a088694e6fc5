"""Tensor and sequence degrees that cannot work are refused before launch, with the reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sample_study import SOFTWARE

from autotune.errors import ConfigError
from autotune.machine.hardware import Hardware
from autotune.question.workload import ModelShape, Workload
from autotune.space.compatibility import conflict
from autotune.space.strategy import Strategy


@pytest.mark.parametrize(
    ("knobs", "reason"),
    [
        ({"tensor_parallel_size": 2, "sequence_parallel_size": 2}, "cannot be combined"),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, "cannot be combined"),
        ({"tensor_parallel_size": 2, "lora_rank": 8}, "AutoTP does not look into PEFT's layers"),
        ({"tensor_parallel_size": 2, "fused_kernels": True}, "reads the weights of the head"),
        (
            {"tensor_parallel_size": 2, "zero_stage": 3, "zero_hpz_partition_size": 2},
            "neighbouring ranks",
        ),
        ({"sequence_parallel_size": 2, "attention": "eager"}, "drops the mask"),
        (
            {"sequence_parallel_size": 2, "zero_stage": 3, "optimizer": "muon"},
            "averages gradients there in two ways",
        ),
    ],
    ids=str,
)
def test_a_strategy_that_contradicts_itself_is_refused(knobs: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Strategy.from_dict(knobs)


@pytest.mark.parametrize(
    ("knobs", "changes", "reason"),
    [
        ({"tensor_parallel_size": 3}, {}, "3 does not divide the 4 ranks"),
        ({"tensor_parallel_size": 2}, {"num_attention_heads": 3}, "num_attention_heads 3"),
        ({"tensor_parallel_size": 4}, {"num_key_value_heads": 2}, "num_key_value_heads 2"),
        ({"tensor_parallel_size": 2}, {"model_type": "mixtral"}, "not tested with mixtral"),
        ({"sequence_parallel_size": 2}, {"model_type": "bloom"}, "not tested with bloom"),
        ({"sequence_parallel_size": 4}, {"num_key_value_heads": 3}, "nor is a multiple of it"),
        ({"sequence_parallel_size": 4}, {"num_attention_heads": 6}, "num_attention_heads 6"),
        (
            {"sequence_parallel_size": 2},
            {"config": {"sliding_window": 16}},
            "up to the sliding window 16",
        ),
    ],
    ids=str,
)
def test_a_model_that_cannot_be_divided_so_is_refused(
    tiny: Workload,
    cpu_hardware: Hardware,
    knobs: dict[str, Any],
    changes: dict[str, Any],
    reason: str,
) -> None:
    words = _conflict(tiny, cpu_hardware, knobs, changes)
    assert words is not None
    assert reason in words


@pytest.mark.parametrize(
    ("knobs", "changes"),
    [
        ({"tensor_parallel_size": 2}, {}),
        ({"sequence_parallel_size": 4}, {"num_key_value_heads": 2}),
        ({"sequence_parallel_size": 2}, {"config": {"sliding_window": 4096}}),
        (
            {"sequence_parallel_size": 2},
            {"config": {"sliding_window": 16, "use_sliding_window": False}},
        ),
    ],
    ids=str,
)
def test_what_can_be_divided_is_allowed(
    tiny: Workload, cpu_hardware: Hardware, knobs: dict[str, Any], changes: dict[str, Any]
) -> None:
    assert _conflict(tiny, cpu_hardware, knobs, changes) is None


def test_a_sequence_that_does_not_divide_is_refused(
    tiny: Workload, cpu_hardware: Hardware
) -> None:
    words = _conflict(replace(tiny, seq_len=33), cpu_hardware, {"sequence_parallel_size": 2}, {})
    assert words is not None
    assert "--seq-len 33" in words


def _conflict(
    workload: Workload, hardware: Hardware, knobs: dict[str, Any], changes: dict[str, Any]
) -> str | None:
    shape: ModelShape = replace(
        workload.model, **{"num_attention_heads": 4, "num_key_value_heads": 4} | changes
    )
    return conflict(
        Strategy.from_dict(knobs),
        replace(workload, model=shape),
        replace(hardware, num_devices=4),
        SOFTWARE,
    )
