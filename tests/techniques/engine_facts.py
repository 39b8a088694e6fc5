"""What is inside engines of two ranks: dtypes, masters, loss scale, losses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from two_ranks import NUM_RANKS, Facts, look_into, train_step

import autotune
from autotune.knob_values import ModuleGroup
from autotune.machine.hardware import DeviceType
from autotune.question.workload import Workload
from autotune.space.deepspeed_config import deepspeed_config
from autotune.space.strategy import Strategy
from autotune.space.strategy_file import StrategyFile
from autotune.techniques.loss_scale import LossScale
from autotune.techniques.precision import module_groups
from autotune.trials.trial import TrialSpec
from autotune.worker.engine import build_engine
from autotune.worker.model import build_model

NUM_STEPS = 5
LEARNING_RATE = 0.1
"""For SGD, whose steps show a gradient of the wrong size."""

Cases = dict[str, dict[str, Any]]
"""Knobs, and what else a case asks for: `as_exported`, `learning_rate`, a `loss_scale` to start
from, a step whose gradients overflow on the last rank alone (`overflowing_step`)."""


def engine_facts(folder: Path, workload: Workload, cases: Cases) -> Facts:
    """What the first rank found in each case, by its name."""
    specs = {
        name: TrialSpec(
            workload=workload,
            strategy=Strategy.from_dict(
                {"micro_batch_size": 2, "optimizer": "sgd"} | case["knobs"]
            ),
            num_ranks=NUM_RANKS,
            learning_rate=case.get("learning_rate", LEARNING_RATE),
        )
        for name, case in cases.items()
    }
    return look_into(folder, specs, partial(_facts, folder, cases))


def _facts(folder: Path, cases: Cases, name: str, spec: TrialSpec, rank: int) -> Facts:
    case = cases[name]
    engine = (
        _as_exported(spec, rank, folder)
        if case.get("as_exported", False)
        else build_engine(spec, torch.device("cpu")).engine
    )
    groups = module_groups(engine.module)
    raw, outputs = _watch(groups, prepend=True), _watch(groups, prepend=False)
    if "loss_scale" in case:
        _scaler(engine.optimizer).cur_scale = case["loss_scale"]
    weights = [_sums(engine.module)]
    losses, skipped = [], []
    for step in range(NUM_STEPS):
        is_overflowing = step == case.get("overflowing_step") and rank == NUM_RANKS - 1
        with _overflow(engine.module) if is_overflowing else nullcontext():
            losses.append(train_step(engine, spec, rank, step))
        skipped.append(engine.skipped_steps)
        weights.append(_sums(engine.module))
    return {
        "losses": losses,
        "skipped": skipped,
        "weights": weights,
        "agrees": _is_same_on_all_ranks(weights),
        "scale": getattr(_scaler(engine.optimizer), "cur_scale", 1.0),
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


def _scaler(optimizer: Any) -> Any:
    """DeepSpeed's scaler of the loss: ZeRO's, or our own optimizer's; None where there is none."""
    own = getattr(optimizer, "loss_scale", None)
    return own.scaler if isinstance(own, LossScale) else getattr(optimizer, "loss_scaler", None)


def _sums(model: nn.Module) -> list[float]:
    """One number for each parameter, which a step changes."""
    return [float(parameter.detach().double().sum()) for parameter in model.parameters()]


def _is_same_on_all_ranks(numbers: list[list[float]]) -> bool:
    """Of numbers that this rank has: whether the others have the same."""
    least, most = (
        torch.tensor(numbers, dtype=torch.double),
        torch.tensor(numbers, dtype=torch.double),
    )
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return torch.equal(least, most)


@contextmanager
def _overflow(model: nn.Module) -> Iterator[None]:
    """Give one weight in fp16 a gradient that is infinite."""
    weight = next(p for p in model.parameters() if p.dtype is torch.float16)
    handle = weight.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))
    yield
    handle.remove()


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
