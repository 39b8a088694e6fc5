"""What engines of two ranks send: collectives counted, buffers, second copies of weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from two_ranks import NUM_RANKS, Facts, look_into, tokens, train_step

from autotune.question.workload import Workload
from autotune.space.strategy import Strategy
from autotune.trials.trial import TrialSpec
from autotune.worker.engine import build_engine

NUM_STEPS = 5


def communication_facts(
    folder: Path, workload: Workload, cases: dict[str, dict[str, Any]]
) -> Facts:
    """What the first rank found in each case (knobs), by its name."""
    specs = {
        name: TrialSpec(
            workload=workload,
            strategy=Strategy.from_dict({"micro_batch_size": 2, "precision": "fp32"} | knobs),
            num_ranks=NUM_RANKS,
            learning_rate=1e-4,
        )
        for name, knobs in cases.items()
    }
    return look_into(folder, specs, _facts)


def _facts(name: str, spec: TrialSpec, rank: int) -> Facts:
    engine = build_engine(spec, torch.device("cpu")).engine
    losses = [train_step(engine, spec, rank, index) for index in range(NUM_STEPS - 1)]
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        losses.append(train_step(engine, spec, rank, NUM_STEPS - 1))
    sent = Counter(event.name for event in profiler.events() if event.name.startswith("gloo:"))
    optimizer = engine.optimizer
    buckets = getattr(optimizer, "ipg_buckets", {}).values()
    parameters = list(engine.module.parameters())
    # Buffers and second copies are let go after a step.
    ids = tokens(spec, rank, 0, 0)
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
