"""The model of a trial: the real architecture with random weights, made on its device.

Nothing is downloaded. The same seed gives the same weights under every ZeRO stage, so that losses
of strategies can be compared.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any
from unittest import mock
from zlib import crc32

import torch
import torch._dynamo  # before deepspeed.zero.Init, which fails without it with torch 2.13
from torch import nn

from autotune.question.model_config import transformers_config
from autotune.question.workload import Method, ModelShape, Workload
from autotune.space.strategy import Strategy
from autotune.techniques.blocks import decoder_layers
from autotune.techniques.precision import torch_dtype
from autotune.techniques.stage import cut_stage
from autotune.techniques.towers import add_tower

__all__ = ["build_empty", "build_model", "fill_adapters"]

_INIT_STD = 0.02
"""Standard deviation of random weights: the `initializer_range` of nearly all configurations."""


def build_model(
    workload: Workload,
    strategy: Strategy,
    *,
    device: torch.device,
    deepspeed_config: dict[str, Any],
    seed: int,
    stage: int = 0,
) -> nn.Module:
    """The causal language model of the workload, with random weights on `device`.

    Under ZeRO-3 each parameter is divided over the ranks as soon as it is made, so that no rank
    ever holds the whole model. For QLoRA the linear layers are made in 4 bit, one after the other.
    Of a pipeline only what its `stage` needs gets memory.
    """
    dtype = torch_dtype(strategy.precision)
    with contextlib.ExitStack() as stack:
        if strategy.zero_stage == 3:
            import deepspeed

            stack.enter_context(deepspeed.zero.Init(config_dict_or_path=deepspeed_config))
        stack.enter_context(torch.device(device))
        stack.enter_context(_no_weight_init())
        if workload.method is Method.QLORA:
            stack.enter_context(_linears_on_meta())
        if strategy.pipeline_parallel_size > 1:
            stack.enter_context(_parameters_on_meta())
        model = _from_config(workload.model, dtype, str(strategy.attention))
        if workload.model.tower_parameters:
            add_tower(
                model,
                workload.model.tower_parameters,
                dtype,
                is_trained=workload.model.trains_tower,
            )
    model.tie_weights()  # type: ignore[operator]
    if strategy.pipeline_parallel_size > 1:
        layers = decoder_layers(model, workload.model.num_hidden_layers)
        cut_stage(model, layers, stage=stage, num_stages=strategy.pipeline_parallel_size)
        _give_memory(model, device, is_quantized=workload.method is Method.QLORA)
    if workload.method is Method.QLORA:
        _quantize_linears(model, dtype, device, seed)
    _fill_parameters(model, seed)
    model.train()
    return model


def build_empty(shape: ModelShape, dtype: torch.dtype, attention: str) -> nn.Module:
    """The model as trials build it, with whatever values its parameters' memory has.

    Args:
        shape: the architecture.
        dtype: of its parameters.
        attention: the name of an implementation that transformers knows.
    """
    with _no_weight_init():
        model = _from_config(shape, dtype, attention)
    model.tie_weights()  # type: ignore[operator]
    return model


def _from_config(shape: ModelShape, dtype: torch.dtype, attention: str) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    if shape.source is not None:
        config = AutoConfig.from_pretrained(shape.source, trust_remote_code=True)
    else:
        config = transformers_config(shape.config)
    model: nn.Module = AutoModelForCausalLM.from_config(
        config,
        dtype=dtype,
        attn_implementation=attention,
        trust_remote_code=shape.source is not None,
    )
    return model


@contextlib.contextmanager
def _no_weight_init() -> Iterator[None]:
    """Skip the random initialisation of transformers, which `_fill_parameters` replaces."""
    from transformers import PreTrainedModel

    with (
        mock.patch.object(PreTrainedModel, "init_weights"),
        mock.patch.object(nn.Linear, "reset_parameters"),
        mock.patch.object(nn.Embedding, "reset_parameters"),
    ):
        yield


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Make parameters without memory; buffers keep their values."""
    original = nn.Module.register_parameter

    def register(self: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        original(self, name, parameter)

    with mock.patch.object(nn.Module, "register_parameter", register):
        yield


def _give_memory(model: nn.Module, device: torch.device, *, is_quantized: bool) -> None:
    """Put parameters on the meta device into memory, without values; shared ones stay shared.

    Args:
        model: the whole model, or a stage of it.
        device: where to.
        is_quantized: whether to leave linear layers to `_quantize_linears`.
    """
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        is_later = is_quantized and isinstance(module, nn.Linear)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta and parameter not in made and not is_later:
                made[parameter] = nn.Parameter(torch.empty_like(parameter, device=device))
            setattr(module, name, made.get(parameter, parameter))


@contextlib.contextmanager
def _linears_on_meta() -> Iterator[None]:
    """Make linear layers without memory: they are filled when they are quantized."""
    original = nn.Linear.__init__

    def init(self: nn.Linear, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **(kwargs | {"device": "meta"}))

    with mock.patch.object(nn.Linear, "__init__", init):
        yield


def _quantize_linears(
    model: nn.Module, dtype: torch.dtype, device: torch.device, seed: int
) -> None:
    """Give meta linear layers memory: 4-bit NormalFloat, double quantized; the head in `dtype`.

    Dettmers et al., QLoRA (arXiv 2305.14314), section 3.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    head = model.get_output_embeddings()  # type: ignore[operator]
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear) or not module.weight.is_meta:
            continue
        if module is head:
            module.to_empty(device=device)
            continue
        weight = torch.empty(module.weight.shape, dtype=dtype, device=device)
        _fill(weight, f"{name}.weight", seed)
        quantized = Linear4bit(
            module.in_features,
            module.out_features,
            bias=module.bias is not None,
            compute_dtype=dtype,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        quantized.weight = Params4bit(
            weight,
            requires_grad=False,
            compress_statistics=True,
            quant_type="nf4",
            module=quantized,
        ).to(device)
        if module.bias is not None:
            quantized.bias = nn.Parameter(torch.zeros_like(module.bias, device=device))
        parent_name, _, child_name = name.rpartition(".")
        setattr(model.get_submodule(parent_name), child_name, quantized)


def _fill_parameters(model: nn.Module, seed: int) -> None:
    """Random matrices, ones for the weights of norms, zeros for biases; each from its own seed."""
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            continue
        if hasattr(parameter, "ds_id"):
            import deepspeed

            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                if parameter.numel():
                    _fill(parameter.data, name, seed)
        else:
            _fill(parameter.data, name, seed)


def _fill(tensor: torch.Tensor, name: str, seed: int) -> None:
    if tensor.dim() >= 2:
        tensor.normal_(std=_INIT_STD, generator=_generator(tensor, name, seed))
    else:
        tensor.fill_(0.0 if name.endswith("bias") else 1.0)


def fill_adapters(model: nn.Module, seed: int) -> None:
    """Draw the adapters' random start as PEFT does, each matrix from its own seed.

    PEFT draws them one after the other, and the stages of a pipeline do not begin with the same.
    """
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            nn.init.kaiming_uniform_(
                parameter, a=math.sqrt(5), generator=_generator(parameter, name, seed)
            )


def _generator(tensor: torch.Tensor, name: str, seed: int) -> torch.Generator:
    generator = torch.Generator(device=tensor.device)
    return generator.manual_seed(crc32(f"{seed}:{name}".encode()))
