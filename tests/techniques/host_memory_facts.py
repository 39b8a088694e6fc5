"""What the optimizers of two ranks' engines keep where it is offloaded to: bytes of tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from two_ranks import NUM_RANKS, Facts, look_into, train_step

from autotune.question.workload import Method, Workload
from autotune.space.strategy import Strategy
from autotune.trials.trial import TrialSpec
from autotune.worker.engine import build_engine


def host_memory_facts(folder: Path, workload: Workload, cases: dict[str, dict[str, Any]]) -> Facts:
    """Bytes of all ranks together in each case, by its name, which stands for its knobs."""
    specs = {
        name: TrialSpec(
            workload=replace(
                workload, method=Method.LORA if "lora_rank" in knobs else Method.FULL
            ),
            strategy=Strategy.from_dict({"micro_batch_size": 2} | knobs),
            num_ranks=NUM_RANKS,
        )
        for name, knobs in cases.items()
    }
    return look_into(folder, specs, _facts)


def _facts(name: str, spec: TrialSpec, rank: int) -> Facts:
    engine = build_engine(spec, torch.device("cpu")).engine
    train_step(engine, spec, rank, 0)
    storages = {}
    for tensor in _kept(engine):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    total = torch.tensor(sum(storages.values()))
    torch.distributed.all_reduce(total)
    return {"bytes": int(total)}


def _kept(engine: Any) -> Iterator[torch.Tensor]:
    """Tensors that ZeRO would have on the host of a GPU."""
    optimizer = engine.optimizer
    masters = getattr(optimizer, "single_partition_of_fp32_groups", None)
    if masters is None:
        masters = optimizer.fp32_partitioned_groups_flat
        yield optimizer.grad_partitions_flat_buffer
        if optimizer.offload_param:
            yield from optimizer.param_groups_fp16_flat_cpu_memory
            # Frozen weights too, which the optimizer does not know.
            yield from (weight.ds_tensor for weight in engine.module.parameters())
    else:
        yield from optimizer.param_buffer_of_bit16_for_cpu_offload_groups
        yield optimizer.temp_grad_buffer_for_cpu_offload
        yield from optimizer.accumulated_grads_in_cpu.values()
    for master in masters:
        yield master
        yield master.grad
    for state in optimizer.optimizer.state.values():
        yield from (kept for kept in state.values() if torch.is_tensor(kept))
