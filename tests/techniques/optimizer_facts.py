"""What optimizers of two ranks' engines keep: shapes, dtypes, bytes, losses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from two_ranks import NUM_RANKS, Facts, look_into, train_step

from autotune.question.workload import Workload
from autotune.space.strategy import Strategy
from autotune.trials.trial import TrialSpec
from autotune.worker.engine import build_engine, optimizer_state_bytes

NUM_STEPS = {"muon": 5}
"""Of the optimizer whose losses are compared; three show that another learns."""
MATRIX = "self_attn.q_proj"

_LEARNING_RATES = {"sgd": 0.3, "muon": 5e-3, "adafactor": 0.1}


def optimizer_facts(folder: Path, cases: dict[str, tuple[Workload, dict[str, Any]]]) -> Facts:
    """What the first rank found in each case (a workload and knobs), by its name."""
    specs = {
        name: TrialSpec(
            workload=workload,
            strategy=Strategy.from_dict({"micro_batch_size": 2} | knobs),
            num_ranks=NUM_RANKS,
            learning_rate=_LEARNING_RATES.get(knobs["optimizer"], 3e-3),
        )
        for name, (workload, knobs) in cases.items()
    }
    # Muon's kernels uncompiled: minutes less, and a trial of its own shows that they compile.
    with mock.patch.dict(os.environ, {"TORCHDYNAMO_DISABLE": "1"}):
        return look_into(folder, specs, _facts)


def _facts(name: str, spec: TrialSpec, rank: int) -> Facts:
    built = build_engine(spec, torch.device("cpu"))
    engine = built.engine
    trained = [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]
    matrix = next(p for name, p in trained if MATRIX in name)
    before = _whole(matrix)
    # Over always the same batch.
    losses = [train_step(engine, spec, rank, 0)]
    moved = _whole(matrix) - before
    num_steps = NUM_STEPS.get(spec.strategy.optimizer, 3)
    losses += [train_step(engine, spec, rank, 0) for _ in range(num_steps - 1)]
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return {
        "losses": losses,
        "num_trainable_parameters": built.num_trainable_parameters,
        "num_skipped": engine.skipped_steps,
        "wrapper": type(engine.optimizer).__name__,
        "optimizer": type(optimizer).__name__,
        "fused": [group.get("fused") for group in optimizer.param_groups],
        "bytes": optimizer_state_bytes(engine),
        # Where the optimizer sees parameters, it sees them in the order of the model.
        "names": [name for name, _ in trained],
        "states": [
            {key: [list(t.shape), str(t.dtype)] for key, t in kept.items() if torch.is_tensor(t)}
            for kept in optimizer.state.values()
        ],
        "singular_values": torch.linalg.svdvals(moved).tolist(),
    }


def _whole(parameter: torch.nn.Parameter) -> torch.Tensor:
    """A copy of a parameter in fp32, put together from its ZeRO-3 partitions."""
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
        return parameter.detach().float().clone()
