"""Which checkpoints and tiles are refused before launch, and why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sample_study import SOFTWARE

from autotune.errors import ConfigError
from autotune.machine.hardware import Hardware
from autotune.question.workload import Workload
from autotune.space.compatibility import conflict
from autotune.space.strategy import Strategy


@pytest.mark.parametrize(
    ("knobs", "reason"),
    [
        ({"checkpoint_scope": "mlp"}, "needs checkpoint_interval 1, got 0"),
        ({"checkpoint_scope": "attention", "checkpoint_interval": 2}, "interval 1, got 2"),
        ({"offload_checkpoints": "cpu"}, "needs checkpoint_interval 1 or more"),
        ({"offload_checkpoints": "nvme", "checkpoint_interval": 1}, "takes none or cpu"),
        (
            {"checkpoint_scope": "mlp", "checkpoint_interval": 1, "mlp_tiles": 2},
            "tiles already recompute the MLP",
        ),
        ({"loss_tiles": 2, "fused_kernels": True}, "needs fused_kernels false"),
    ],
    ids=str,
)
def test_knobs_that_contradict_each_other_are_refused(knobs: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Strategy.from_dict(knobs)


@pytest.mark.parametrize(
    ("model_type", "knobs", "reason"),
    [
        ("llama", {"mlp_tiles": 33}, "mlp_tiles 33 is more than the 32 tokens"),
        ("llama", {"loss_tiles": 33}, "loss_tiles 33 is more than the 32 tokens"),
        ("opt", {"mlp_tiles": 2}, "mlp_tiles 2 needs an MLP of its own"),
        (
            "opt",
            {"checkpoint_scope": "mlp", "checkpoint_interval": 1},
            "checkpoint_scope mlp needs an MLP of its own",
        ),
        ("bloom", {"mlp_tiles": 2}, "take the residual"),
        (
            "bloom",
            {"checkpoint_scope": "attention", "checkpoint_interval": 1},
            "take the residual",
        ),
    ],
    ids=str,
)
def test_what_the_model_cannot_take_is_refused(
    tiny: Workload,
    cpu_hardware: Hardware,
    model_type: str,
    knobs: dict[str, Any],
    reason: str,
) -> None:
    attention = {"attention": "eager"} if model_type == "bloom" else {}
    workload = replace(tiny, model=replace(tiny.model, model_type=model_type))
    strategy = Strategy.from_dict(attention | knobs)
    assert reason in (conflict(strategy, workload, cpu_hardware, SOFTWARE) or "")


def test_loss_tiles_are_refused_beside_the_routers_loss(
    tiny: Workload, cpu_hardware: Hardware
) -> None:
    routed = replace(tiny.model, config=dict(tiny.model.config) | {"output_router_logits": True})
    words = conflict(Strategy(loss_tiles=2), replace(tiny, model=routed), cpu_hardware, SOFTWARE)
    assert "output_router_logits false" in (words or "")


def test_a_model_without_mlp_modules_takes_attention_checkpoints_and_loss_tiles(
    tiny: Workload, cpu_hardware: Hardware
) -> None:
    opt = replace(tiny, model=replace(tiny.model, model_type="opt"))
    knobs = {"checkpoint_scope": "attention", "checkpoint_interval": 1, "loss_tiles": 2}
    assert conflict(Strategy.from_dict(knobs), opt, cpu_hardware, SOFTWARE) is None
