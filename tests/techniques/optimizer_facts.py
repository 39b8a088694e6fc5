"""Real engines of two ranks, and what their optimizers keep: shapes, dtypes, bytes, losses.

Spawned by `test_optimizers.py`, since a trial's ranks report measurements only.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from autotune.hardware import DeviceType
from autotune.strategy import Strategy
from autotune.trial import TrialSpec
from autotune.worker.engine import build_engine, optimizer_state_bytes
from autotune.worker.process_group import join
from autotune.worker.samples import micro_batch
from autotune.workload import Workload

NUM_RANKS = 2
NUM_STEPS = {"muon": 5}
"""Of the optimizer whose losses are compared; three show that another learns."""
MATRIX = "self_attn.q_proj"

_LEARNING_RATES = {"sgd": 0.3, "muon": 5e-3, "adafactor": 0.1}

Facts = dict[str, Any]


def run_ranks(folder: Path, cases: dict[str, tuple[Workload, dict[str, Any]]]) -> Facts:
    """What the first rank found in each case (a workload and knobs), by its name."""
    plain = {name: (workload.to_dict(), knobs) for name, (workload, knobs) in cases.items()}
    # Muon's kernels uncompiled: minutes less, and a trial of its own shows that they compile.
    with mock.patch.dict(os.environ, {"TORCHDYNAMO_DISABLE": "1"}):
        torch.multiprocessing.spawn(_rank, (str(folder), json.dumps(plain)), nprocs=NUM_RANKS)
    facts: Facts = json.loads((folder / "facts.json").read_text())
    return facts


def _rank(rank: int, folder: str, cases: str) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(NUM_RANKS)}
    torch.set_num_threads(1)
    join(Path(folder), rank=rank, num_ranks=NUM_RANKS, device_type=DeviceType.CPU)
    facts = {}
    for name, (workload, knobs) in json.loads(cases).items():
        spec = TrialSpec(
            workload=Workload.from_dict(workload),
            strategy=Strategy.from_dict({"micro_batch_size": 2} | knobs),
            num_ranks=NUM_RANKS,
            learning_rate=_LEARNING_RATES.get(knobs["optimizer"], 3e-3),
        )
        facts[name] = _facts(spec, rank)
    if rank == 0:
        Path(folder, "facts.json").write_text(json.dumps(facts))
    torch.distributed.barrier()


def _facts(spec: TrialSpec, rank: int) -> Facts:
    built = build_engine(spec, torch.device("cpu"))
    engine = built.engine
    trained = [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]
    matrix = next(p for name, p in trained if MATRIX in name)
    before = _whole(matrix)
    losses = [_step(engine, spec, rank)]
    moved = _whole(matrix) - before
    num_steps = NUM_STEPS.get(spec.strategy.optimizer, 3)
    losses += [_step(engine, spec, rank) for _ in range(num_steps - 1)]
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


def _step(engine: Any, spec: TrialSpec, rank: int) -> float:
    """One optimizer step over always the same batch; the mean loss of the ranks."""
    losses = []
    for micro in range(spec.workload.global_batch_size // (NUM_RANKS * 2)):
        ids = micro_batch(spec, data_rank=rank, step=0, micro=micro)
        loss = engine(input_ids=ids, labels=ids, use_cache=False).loss
        engine.backward(loss)
        engine.step()
        losses.append(loss.detach().float())
    mean = torch.stack(losses).mean()
    torch.distributed.all_reduce(mean)
    return float(mean) / NUM_RANKS
