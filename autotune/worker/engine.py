"""The DeepSpeed engine of one trial: the model, the strategy put on it, and `initialize`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from autotune.machine.hardware import DeviceType
from autotune.space.deepspeed_config import deepspeed_config
from autotune.techniques.apply import apply_strategy
from autotune.techniques.optimizers import build_optimizer
from autotune.techniques.parallel_layout import parallel_coordinates
from autotune.techniques.parameter_counts import count, count_trainable
from autotune.techniques.pipeline import pipeline_module, sum_over_stages
from autotune.techniques.sequence_parallel import sequence_units
from autotune.trials.trial import TrialSpec
from autotune.worker.model import build_model, fill_adapters

__all__ = ["BuiltEngine", "build_engine", "optimizer_state_bytes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltEngine:
    """An engine, and what it trains."""

    engine: Any
    """DeepSpeed's engine."""
    num_parameters: int
    """Parameters of the whole model, over all ranks."""
    num_trainable_parameters: int


def build_engine(
    spec: TrialSpec, device: torch.device, on_model: Callable[[], None] = lambda: None
) -> BuiltEngine:
    """Build the model of a trial, put its strategy on it and hand it to DeepSpeed.

    Args:
        spec: the trial.
        device: of this rank.
        on_model: told when the model is there, and DeepSpeed's turn comes.
    """
    import deepspeed

    workload, strategy = spec.workload, spec.strategy
    config = deepspeed_config(
        workload,
        strategy,
        num_devices=spec.num_ranks,
        device_type=DeviceType(device.type),
        learning_rate=spec.learning_rate,
        nvme_path=spec.nvme_path,
    )
    torch.manual_seed(spec.seed)
    coordinates = parallel_coordinates(strategy, rank=dist.get_rank(), num_ranks=spec.num_ranks)
    model = build_model(
        workload,
        strategy,
        device=device,
        deepspeed_config=config,
        seed=spec.seed,
        stage=coordinates.pipeline,
    )
    model = apply_strategy(
        model, strategy, method=workload.method, lora_targets=workload.lora_targets
    )
    fill_adapters(model, spec.seed)
    num_stages = strategy.pipeline_parallel_size
    if num_stages > 1:
        model = pipeline_module(model, num_stages=num_stages, stage=coordinates.pipeline)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    num_parameters, num_trainable = _count_parameters(model)
    on_model()
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=trainable,
        optimizer=build_optimizer(model, strategy, spec.learning_rate),
        config=config,
        mpu=sequence_units(strategy),
    )
    return BuiltEngine(
        engine=engine, num_parameters=num_parameters, num_trainable_parameters=num_trainable
    )


def _count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """All parameters of the whole model, and those that are trained; tied ones once."""
    own = [p for p in model.parameters() if not getattr(p, "ds_pipe_replicated", False)]
    return sum_over_stages(model, count(own)), sum_over_stages(model, count_trainable(own))


def optimizer_state_bytes(engine: Any) -> int:
    """Bytes of the tensors that the optimizer under DeepSpeed's wrapper keeps on this rank."""
    wrapped = engine.optimizer
    state = dict(getattr(wrapped, "optimizer", wrapped).state)
    # With an offload_ratio below 1 another optimizer has what stays on the device.
    state |= getattr(getattr(wrapped, "backup_optimizer", None), "state", {})
    # Once each: in bitsandbytes all parameters share the table of their 8-bit values.
    tensors = {id(t): t for kept in state.values() for t in kept.values() if torch.is_tensor(t)}
    in_memory = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    swapper = getattr(wrapped, "optimizer_swapper", None)
    if swapper is None:
        return in_memory
    # What is on disk leaves empty tensors. The first of a sub-group's files are its weights.
    kept = swapper.swap_params_info.values()
    elements = sum((info.num_tensors() - 1) * info.numel() for info in kept)
    return in_memory + int(elements * swapper.swap_element_size)
