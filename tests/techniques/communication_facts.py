"""Real engines of two ranks, and what they send: collectives counted, buffers, second copies.

Spawned by `test_communication.py`, since a trial's ranks report measurements only.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from autotune.hardware import DeviceType
from autotune.strategy import Strategy
from autotune.trial import TrialSpec
from autotune.worker.engine import build_engine
from autotune.worker.process_group import join
from autotune.worker.samples import micro_batch
from autotune.workload import Workload

NUM_RANKS = 2
NUM_STEPS = 5

Facts = dict[str, Any]


def run_ranks(folder: Path, workload: Workload, cases: dict[str, dict[str, Any]]) -> Facts:
    """What the first rank found in each case (knobs), by its name."""
    arguments = (str(folder), json.dumps(workload.to_dict()), cases)
    torch.multiprocessing.spawn(_rank, arguments, nprocs=NUM_RANKS)
    facts: Facts = json.loads((folder / "facts.json").read_text())
    return facts


def _rank(rank: int, folder: str, workload: str, cases: dict[str, dict[str, Any]]) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(NUM_RANKS)}
    torch.set_num_threads(1)
    join(Path(folder), rank=rank, num_ranks=NUM_RANKS, device_type=DeviceType.CPU)
    facts = {}
    for name, knobs in cases.items():
        spec = TrialSpec(
            workload=Workload.from_dict(json.loads(workload)),
            strategy=Strategy.from_dict({"micro_batch_size": 2, "precision": "fp32"} | knobs),
            num_ranks=NUM_RANKS,
            learning_rate=1e-4,
        )
        facts[name] = _facts(spec, rank)
    if rank == 0:
        Path(folder, "facts.json").write_text(json.dumps(facts))
    torch.distributed.barrier()


def _facts(spec: TrialSpec, rank: int) -> Facts:
    engine = build_engine(spec, torch.device("cpu")).engine
    losses = [_step(engine, spec, rank, index) for index in range(NUM_STEPS - 1)]
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        losses.append(_step(engine, spec, rank, NUM_STEPS - 1))
    sent = Counter(event.name for event in profiler.events() if event.name.startswith("gloo:"))
    optimizer = engine.optimizer
    buckets = getattr(optimizer, "ipg_buckets", {}).values()
    parameters = list(engine.module.parameters())
    # Buffers and second copies are let go after a step.
    ids = _tokens(spec, rank, 0, 0)
    engine.backward(engine(input_ids=ids, labels=ids, use_cache=False).loss)
    second = [p.ds_secondary_tensor for p in parameters if hasattr(p, "ds_secondary_tensor")]
    return {
        "losses": losses,
        "sent": dict(sent),
        "overlaps": engine.zero_overlap_comm(),
        "buffers": [_sizes(bucket.buffer) for bucket in buckets],
        "second_copy_elements": sum(tensor.numel() for tensor in second if tensor is not None),
        "divided_elements": sum(
            p.ds_numel for p in parameters if hasattr(p, "ds_numel") and not p.ds_persist
        ),
    }


def _sizes(buffer: Any) -> list[int]:
    """Elements of each of the buffers of a bucket: ZeRO-3 has one, the other stages a list."""
    tensors = [buffer] if isinstance(buffer, torch.Tensor) else buffer or []
    return [tensor.numel() for tensor in tensors]


def _tokens(spec: TrialSpec, rank: int, step: int, micro: int) -> torch.Tensor:
    return micro_batch(spec, data_rank=rank, step=step, micro=micro)


def _step(engine: Any, spec: TrialSpec, rank: int, step: int) -> float:
    """All micro-batches of one optimizer step; their mean loss over all ranks."""
    accumulation = spec.strategy.gradient_accumulation_steps(
        spec.workload.global_batch_size, NUM_RANKS
    )
    losses = []
    for micro in range(accumulation):
        ids = _tokens(spec, rank, step, micro)
        loss = engine(input_ids=ids, labels=ids, use_cache=False).loss
        engine.backward(loss)
        engine.step()
        losses.append(loss.detach().float())
    mean = torch.stack(losses).mean()
    torch.distributed.all_reduce(mean)
    return float(mean) / NUM_RANKS
