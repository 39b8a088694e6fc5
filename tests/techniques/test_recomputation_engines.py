"""Checkpoints and tiles under real two-rank engines: the losses are those of the plain run.

In fp32, two micro-batches a rank, six optimizer steps at a learning rate that moves the losses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import count
from typing import Any

import pytest

from autotune.launch.launcher import Launcher
from autotune.question.workload import Method, Workload
from autotune.space.strategy import Strategy
from autotune.trials.trial import TrialSpec

pytestmark = pytest.mark.slow

TILES = {"mlp_tiles": 3, "loss_tiles": 5}
ON_HOST = {"checkpoint_interval": 2, "offload_checkpoints": "cpu"}
ATTENTION = {"checkpoint_interval": 1, "checkpoint_scope": "attention"}
MLP = {"checkpoint_interval": 1, "checkpoint_scope": "mlp", "loss_tiles": 5}

Losses = Callable[..., tuple[float, ...]]


def _workload(workload: Workload, **sizes: Any) -> Workload:
    model = workload.model
    return replace(workload, model=replace(model, **sizes, config=dict(model.config) | sizes))


@pytest.fixture(scope="module")
def losses(launcher: Launcher, tiny: Workload, tmp_path_factory: pytest.TempPathFactory) -> Losses:
    """Losses of six optimizer steps: `losses("full", zero_stage=2, mlp_tiles=3)`."""
    # Wide enough for ZeRO-3 to divide: it leaves parameters below 100,000 elements whole.
    wide = _workload(
        tiny, hidden_size=384, intermediate_size=512, head_dim=96, num_hidden_layers=2
    )
    workloads = {
        "full": wide,
        "tied": _workload(wide, tie_word_embeddings=True),
        "lora": replace(wide, method=Method.LORA),
    }
    numbers = count()

    @cache
    def train(kind: str, **knobs: Any) -> tuple[float, ...]:
        rank = {"lora_rank": 4} if kind == "lora" else {}
        spec = TrialSpec(
            workload=workloads[kind],
            strategy=Strategy.from_dict(
                {"precision": "fp32", "micro_batch_size": 2} | rank | knobs
            ),
            num_ranks=2,
            warmup_steps=4,
            timed_steps=2,
            learning_rate=1e-2 if kind == "lora" else 1e-3,
        )
        folder = tmp_path_factory.mktemp(f"recomputation{next(numbers)}")
        outcome = launcher.run(spec, folder=folder, timeout_s=240.0)
        assert outcome.measurement is not None, outcome.failure
        assert len(outcome.measurement.losses) >= 6
        return outcome.measurement.losses[:6]

    return train


@pytest.mark.parametrize(
    ("kind", "zero_stage", "knobs"),
    [
        ("full", 0, TILES),
        ("full", 0, ATTENTION | {"offload_checkpoints": "cpu"}),
        ("full", 1, MLP),
        ("full", 2, TILES | ON_HOST),
        ("full", 3, TILES),
        ("full", 3, TILES | ON_HOST),
        ("full", 3, TILES | ATTENTION),
        ("full", 3, MLP),
        ("tied", 1, TILES),
        ("tied", 2, TILES | ATTENTION),
        ("tied", 3, TILES | ON_HOST),
        ("lora", 0, TILES),
        ("lora", 2, TILES | ON_HOST),
        ("lora", 3, TILES | ATTENTION),
    ],
    ids=str,
)
def test_losses_are_those_of_the_plain_run(
    losses: Losses, kind: str, zero_stage: int, knobs: dict[str, Any]
) -> None:
    plain = losses(kind)
    assert abs(plain[-1] / plain[0] - 1) > 1e-3
    assert losses(kind, zero_stage=zero_stage, **knobs) == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize(
    "knobs",
    [
        TILES | {"pipeline_parallel_size": 2, "checkpoint_interval": 1},
        TILES | ON_HOST | {"sequence_parallel_size": 2},
        TILES | ATTENTION | {"tensor_parallel_size": 2},
    ],
    ids=str,
)
def test_losses_are_those_of_the_plain_run_over_parallel_ranks(
    losses: Losses, knobs: dict[str, Any]
) -> None:
    # Two ranks share their samples: as many micro-batches as before, of twice the size.
    assert losses("full", micro_batch_size=4, **knobs) == pytest.approx(losses("full"), rel=1e-5)
