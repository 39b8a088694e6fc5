"""Real engines of two ranks, and what is inside them: dtypes, masters, loss scale, losses.

Spawned by `test_precision.py`, since a trial's ranks report measurements only.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

import autotune
from autotune.deepspeed_config import deepspeed_config
from autotune.hardware import DeviceType
from autotune.knobs import ModuleGroup
from autotune.strategy import Strategy
from autotune.strategy_file import StrategyFile
from autotune.techniques.precision import module_groups
from autotune.trial import TrialSpec
from autotune.worker.engine import build_engine
from autotune.worker.model import build_model
from autotune.worker.samples import micro_batch
from autotune.workload import Workload

NUM_RANKS = 2
NUM_STEPS = 5
LEARNING_RATE = 0.1
"""For SGD, whose steps show a gradient of the wrong size."""

Facts = dict[str, Any]


def run_ranks(folder: Path, workload: Workload, cases: dict[str, dict[str, Any]]) -> Facts:
    """What the first rank found in each case, by its name."""
    arguments = (str(folder), json.dumps(workload.to_dict()), cases)
    torch.multiprocessing.spawn(_rank, arguments, nprocs=NUM_RANKS)
    facts: Facts = json.loads((folder / "facts.json").read_text())
    return facts


def _rank(rank: int, folder: str, workload: str, cases: dict[str, dict[str, Any]]) -> None:
    import deepspeed
    import torch.distributed as dist

    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(NUM_RANKS)}
    torch.set_num_threads(1)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=NUM_RANKS
    )
    deepspeed.init_distributed(verbose=False)
    facts = {}
    for name, case in cases.items():
        knobs = {"micro_batch_size": 2, "optimizer": "sgd"} | case["knobs"]
        spec = TrialSpec(
            workload=Workload.from_dict(json.loads(workload)),
            strategy=Strategy.from_dict(knobs),
            num_ranks=NUM_RANKS,
            learning_rate=case.get("learning_rate", LEARNING_RATE),
        )
        facts[name] = _Run(spec, rank, Path(folder), case).facts()
    if rank == 0:
        Path(folder, "facts.json").write_text(json.dumps(facts))
    dist.barrier()


class _Run:
    """One engine, trained for some steps."""

    def __init__(self, spec: TrialSpec, rank: int, folder: Path, case: dict[str, Any]) -> None:
        self._spec = spec
        self._rank = rank
        self._case = case
        as_exported = case.get("as_exported", False)
        self._engine = (
            _as_exported(spec, rank, folder)
            if as_exported
            else build_engine(spec, torch.device("cpu")).engine
        )

    def facts(self) -> Facts:
        engine = self._engine
        groups = module_groups(engine.module)
        raw, outputs = _watch(groups, prepend=True), _watch(groups, prepend=False)
        if "loss_scale" in self._case:
            engine.optimizer.loss_scaler.cur_scale = self._case["loss_scale"]
        before = _sums(engine.module)
        losses, skipped = [], []
        for step in range(NUM_STEPS):
            losses.append(self._step(step))
            skipped.append(engine.skipped_steps)
        return {
            "losses": losses,
            "skipped": skipped,
            "weights_before": before,
            "weights": _sums(engine.module),
            "scale": getattr(engine.optimizer, "loss_scale", 1.0),
            "optimizer": type(engine.optimizer).__name__,
            "masters": [
                str(parameter.dtype)
                for group in engine.optimizer.param_groups
                for parameter in group["params"]
            ],
            "parameters": {
                group: sorted({str(p.dtype) for m in modules for p in m.parameters()})
                for group, modules in groups.items()
            },
            "raw": raw,
            "outputs": outputs,
        }

    def _step(self, step: int) -> float:
        spec, losses = self._spec, []
        accumulation = spec.strategy.gradient_accumulation_steps(
            spec.workload.global_batch_size, NUM_RANKS
        )
        for micro in range(accumulation):
            ids = micro_batch(spec, data_rank=self._rank, step=step, micro=micro)
            loss = self._engine(input_ids=ids, labels=ids, use_cache=False).loss
            self._engine.backward(loss)
            self._engine.step()
            losses.append(loss.detach().float())
        mean = torch.stack(losses).mean()
        torch.distributed.all_reduce(mean)
        return float(mean) / NUM_RANKS


def _sums(model: nn.Module) -> list[float]:
    """One number for each parameter, which a step changes."""
    return [float(parameter.detach().double().sum()) for parameter in model.parameters()]


def _watch(groups: dict[ModuleGroup, list[nn.Module]], *, prepend: bool) -> dict[str, list[str]]:
    """The dtypes that modules of each group give, before or after the cast at their border."""
    seen: dict[str, list[str]] = {str(group): [] for group in groups}

    def hook(group: str) -> Any:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if str(first.dtype) not in seen[group]:
                seen[group].append(str(first.dtype))

        return note

    for group, modules in groups.items():
        for module in modules:
            module.register_forward_hook(hook(str(group)), prepend=prepend)
    return seen


def _as_exported(spec: TrialSpec, rank: int, folder: Path) -> Any:
    """An engine as the code in an export's README makes it."""
    import deepspeed

    config = deepspeed_config(
        spec.workload,
        spec.strategy,
        num_devices=NUM_RANKS,
        device_type=DeviceType.CPU,
        learning_rate=spec.learning_rate,
    )
    file, json_file = folder / f"strategy{rank}.yaml", folder / f"ds_config{rank}.json"
    json_file.write_text(json.dumps(config))
    exported = StrategyFile(
        model=spec.workload.model.name,
        seq_len=spec.workload.seq_len,
        global_batch_size=spec.workload.global_batch_size,
        method=spec.workload.method,
        lora_targets=spec.workload.lora_targets,
        learning_rate=spec.learning_rate,
        strategy=spec.strategy,
    )
    file.write_text(exported.to_yaml())
    model = build_model(
        spec.workload,
        spec.strategy,
        device=torch.device("cpu"),
        deepspeed_config=config,
        seed=spec.seed,
    )
    model = autotune.apply(model, file)
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=[p for p in model.parameters() if p.requires_grad],
        optimizer=autotune.create_optimizer(model, file),
        config=str(json_file),
    )
    return engine
