"""The DeepSpeed engine of one trial: the model, the strategy put on it, and `initialize`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from autotune.deepspeed_config import LEARNING_RATE, deepspeed_config
from autotune.hardware import DeviceType
from autotune.trial import TrialSpec
from autotune.worker.apply import apply_strategy
from autotune.worker.model import build_model
from autotune.worker.optimizers import build_optimizer

__all__ = ["BuiltEngine", "build_engine", "optimizer_state_bytes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltEngine:
    """An engine, and what it trains."""

    engine: Any
    """DeepSpeed's own."""
    num_parameters: int
    """Of the whole model, over all ranks."""
    num_trainable_parameters: int


def build_engine(spec: TrialSpec, device: torch.device) -> BuiltEngine:
    """Build the model of a trial, put its strategy on it and hand it to DeepSpeed."""
    import deepspeed

    workload, strategy = spec.workload, spec.strategy
    config = deepspeed_config(
        workload, strategy, num_devices=spec.num_ranks, device_type=DeviceType(device.type)
    )
    torch.manual_seed(spec.seed)
    model = build_model(workload, strategy, device=device, deepspeed_config=config, seed=spec.seed)
    model = apply_strategy(
        model, strategy, method=workload.method, lora_targets=workload.lora_targets
    )
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    num_parameters = sum(_full_size(parameter) for parameter in model.parameters())
    num_trainable = sum(_full_size(parameter) for parameter in trainable)
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=trainable,
        optimizer=build_optimizer(trainable, strategy, LEARNING_RATE),
        config=config,
    )
    return BuiltEngine(
        engine=engine, num_parameters=num_parameters, num_trainable_parameters=num_trainable
    )


def optimizer_state_bytes(engine: Any) -> int:
    """Bytes of the tensors that the optimizer under DeepSpeed's wrapper keeps on this rank."""
    wrapped = engine.optimizer
    state = getattr(wrapped, "optimizer", wrapped).state
    tensors = [t for kept in state.values() for t in kept.values() if isinstance(t, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _full_size(parameter: torch.nn.Parameter) -> int:
    """Elements of a parameter, divided by ZeRO-3 or packed to 4 bit or not."""
    if hasattr(parameter, "ds_numel"):
        return int(parameter.ds_numel)
    quantization = getattr(parameter, "quant_state", None)
    return int(quantization.shape.numel()) if quantization is not None else parameter.numel()
