"""A precision for each group of modules: their weights, what they compute in, where they meet.

Weights of a group are kept in its precision. What enters one of its modules is cast to it, what
leaves is cast to that of the surroundings: the residual stream's, or an attention's for the norms
inside it. The head's logits stay as they are. Knows no architecture by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from autotune.errors import ConfigError
from autotune.knob_values import GroupPrecision, ModuleGroup, Precision
from autotune.space.strategy import Strategy
from autotune.techniques.blocks import attention_blocks, decoder_layers
from autotune.techniques.fp8 import use_fp8

__all__ = ["is_norm", "module_groups", "parameter_groups", "set_precisions", "torch_dtype"]

_DTYPES = {
    Precision.BF16: torch.bfloat16,
    Precision.FP16: torch.float16,
    Precision.FP32: torch.float32,
}


def torch_dtype(precision: Precision) -> torch.dtype:
    """The dtype of parameters and activations."""
    return _DTYPES[precision]


def set_precisions(model: nn.Module, strategy: Strategy) -> None:
    """Give each group of modules of a transformers model its precision, in place.

    Must come before LoRA wraps the model: adapters take the dtype of the weights they stand by.

    Raises:
        ConfigError: fp8 for linear layers that cannot have it, or another precision for the head
            than for the embedding whose weights it shares.
    """
    # For fp32 products on GPUs; all else is left as it is.
    torch.backends.cuda.matmul.allow_tf32 = strategy.tf32
    if not strategy.has_group_precisions:
        return
    groups = module_groups(model)
    if strategy.has_several_dtypes:
        _refuse_shared_weights(groups, strategy)
        for group, modules in groups.items():
            dtype = torch_dtype(strategy.parameter_precision(group))
            for module in modules:
                _cast_parameters(module, dtype)
        _set_borders(groups, strategy)
    for group, modules in groups.items():
        if strategy.precision_of(group) is GroupPrecision.FP8:
            use_fp8(modules, knob=f"{group}_precision")


def module_groups(model: nn.Module) -> dict[ModuleGroup, list[nn.Module]]:
    """The modules of each group of a causal language model of transformers.

    Norms come last: those inside an attention are norms, not attention.
    """
    config: Any = model.config
    layers = decoder_layers(model, int(config.num_hidden_layers))
    attentions = attention_blocks(layers)
    others = {id(module) for module in attentions}
    inside = {id(module) for module in layers.modules()}
    return {
        ModuleGroup.EMBEDDING: [
            module
            for module in model.modules()
            if isinstance(module, nn.Embedding) and id(module) not in inside
        ],
        ModuleGroup.ATTENTION: attentions,
        # One module of a layer, or OPT's two linear layers.
        ModuleGroup.MLP: [
            child
            for layer in layers
            for child in layer.children()
            if id(child) not in others and not is_norm(child) and _has_weights(child)
        ],
        ModuleGroup.LM_HEAD: [model.get_output_embeddings()],  # type: ignore[operator]
        ModuleGroup.NORM: [module for module in model.modules() if is_norm(module)],
    }


def parameter_groups(
    parameters: Iterable[nn.Parameter],
) -> list[nn.Parameter] | list[dict[str, Any]]:
    """Parameters as an optimizer takes them: a group for each dtype where there are several.

    ZeRO flattens a group into one tensor. It takes the dtype of its loss scale and of its buckets
    of gradients from the first group: fp16, so that the loss is scaled, or else fp32.
    """
    by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter in parameters:
        by_dtype.setdefault(parameter.dtype, []).append(parameter)
    if len(by_dtype) <= 1:
        return [parameter for members in by_dtype.values() for parameter in members]
    order = (torch.float16, torch.float32, torch.bfloat16)
    return [{"params": by_dtype[dtype]} for dtype in order if dtype in by_dtype]


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm, by its class's name."""
    return "Norm" in type(module).__name__


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _refuse_shared_weights(groups: dict[ModuleGroup, list[nn.Module]], strategy: Strategy) -> None:
    embedding, head = (ModuleGroup.EMBEDDING, ModuleGroup.LM_HEAD)
    shared = {id(parameter) for parameter in _parameters(groups[embedding])}
    is_shared = any(id(parameter) in shared for parameter in _parameters(groups[head]))
    precisions = [strategy.parameter_precision(group) for group in (embedding, head)]
    if is_shared and precisions[0] is not precisions[1]:
        raise ConfigError(
            "embedding and lm_head share their weights in this model: embedding_precision "
            f"{precisions[0]} needs the same lm_head_precision, got {precisions[1]}"
        )


def _parameters(modules: list[nn.Module]) -> Iterator[nn.Parameter]:
    return (parameter for module in modules for parameter in module.parameters())


def _cast_parameters(module: nn.Module, dtype: torch.dtype) -> None:
    for parameter in module.parameters():
        if parameter.is_floating_point() and parameter.dtype is not dtype:
            # The same object with other data: shared weights stay shared.
            parameter.data = parameter.data.to(dtype)


def _set_borders(groups: dict[ModuleGroup, list[nn.Module]], strategy: Strategy) -> None:
    """Cast what enters and what leaves each module of a group."""
    residual = torch_dtype(strategy.precision)
    surroundings: dict[int, torch.dtype] = {}
    for group, modules in groups.items():
        own = torch_dtype(strategy.parameter_precision(group))
        for module in modules:
            outside = surroundings.get(id(module), residual)
            surroundings |= {id(inner): own for inner in module.modules() if inner is not module}
            module.register_forward_pre_hook(_cast_inputs(own), with_kwargs=True)
            if group is not ModuleGroup.LM_HEAD:
                module.register_forward_hook(_cast_output(outside))


def _cast_inputs(dtype: torch.dtype) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return _cast(args, dtype), _cast(kwargs, dtype)

    return hook


def _cast_output(dtype: torch.dtype) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        return _cast(output, dtype)

    return hook


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """The floating-point tensors of a value in another dtype, through tuples, lists and dicts."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if type(value) in (tuple, list):
        return type(value)(_cast(part, dtype) for part in value)
    if type(value) is dict:
        return {key: _cast(part, dtype) for key, part in value.items()}
    return value
