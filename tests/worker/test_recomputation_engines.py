"""Checkpoints and tiles under real two-rank engines: the losses are those of the plain run.

In fp32, two micro-batches a rank, six optimizer steps at a learning rate that moves the losses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from conftest import RunTrial

from autotune.workload import Method, Workload

pytestmark = pytest.mark.slow

TILES = {"mlp_tiles": 3, "loss_tiles": 5}
ON_HOST = {"checkpoint_interval": 2, "offload_checkpoints": "cpu"}
ATTENTION = {"checkpoint_interval": 1, "checkpoint_scope": "attention"}
MLP = {"checkpoint_interval": 1, "checkpoint_scope": "mlp"}

Losses = Callable[..., tuple[float, ...]]


def _workload(workload: Workload, **sizes: Any) -> Workload:
    model = workload.model
    return replace(workload, model=replace(model, **sizes, config=dict(model.config) | sizes))


@pytest.fixture(scope="module")
def losses(run_trial: RunTrial, tiny: Workload) -> Losses:
    """Losses of six optimizer steps: `losses("full", zero_stage=2, mlp_tiles=3)`."""
    # Wide enough for ZeRO-3 to divide: it leaves parameters below 100,000 elements whole.
    wide = _workload(tiny, hidden_size=384, intermediate_size=512, head_dim=96)
    workloads = {
        "full": wide,
        "tied": _workload(wide, tie_word_embeddings=True),
        "lora": replace(wide, method=Method.LORA),
    }

    @cache
    def train(kind: str, **knobs: Any) -> tuple[float, ...]:
        rank = {"lora_rank": 4} if kind == "lora" else {}
        outcome = run_trial(
            workload=workloads[kind],
            precision="fp32",
            learning_rate=1e-2 if kind == "lora" else 1e-3,
            timed_steps=4,
            **rank,
            **knobs,
        )
        assert outcome.measurement is not None, outcome.failure
        assert len(outcome.measurement.losses) == 6
        return outcome.measurement.losses

    return train


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("knobs", [{}, TILES, TILES | ON_HOST, ATTENTION | TILES, MLP])
@pytest.mark.parametrize("kind", ["full", "tied", "lora"])
def test_losses_are_those_of_the_plain_run(
    losses: Losses, kind: str, knobs: dict[str, Any], zero_stage: int
) -> None:
    plain = losses(kind)
    print("PLAIN",plain)
    assert abs(plain[-1] / plain[0] - 1) > 1e-4
    got=losses(kind, zero_stage=zero_stage, **knobs)
    print("REL",kind,zero_stage,knobs,max(abs(a/b-1) for a,b in zip(got,plain)))
    assert got == pytest.approx(plain, rel=1e-5)
