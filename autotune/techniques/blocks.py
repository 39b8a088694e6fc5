"""The parts of a causal model by what they do: decoder layers, their attention and their MLPs.

Found by their place and their names' common words, so that no table of architectures is needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from autotune.errors import ConfigError
from autotune.question.census import is_attention
from autotune.techniques.stage import own_layers

__all__ = ["attention_blocks", "causal_model", "decoder_layers", "is_attention", "mlp_blocks"]


def causal_model(model: nn.Module) -> nn.Module:
    """The model of transformers, below PEFT's wrapper where it has one."""
    base: nn.Module = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    return base


def decoder_layers(model: nn.Module, num_layers: int) -> nn.ModuleList:
    """The list of the model's decoder layers, of a pipeline's stage only its own.

    Raises:
        ConfigError: no list of `num_layers` modules is found.
    """
    for module in _language_part(model).modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return own_layers(module)
    raise ConfigError(
        f"checkpoint_interval and mlp_tiles need a model with a list of {num_layers} decoder "
        f"layers; {type(model).__name__} has none"
    )


def _language_part(model: nn.Module) -> nn.Module:
    """The part of a vision-language model that has its decoder layers; others as they are."""
    causal: Any = causal_model(model)
    config: Any = getattr(causal, "config", None)
    if not hasattr(config, "get_text_config") or config.get_text_config() is config:
        return model
    part: nn.Module = causal.get_decoder()
    return part


def attention_blocks(layers: Iterable[nn.Module]) -> list[nn.Module]:
    """The attention of each layer.

    Raises:
        ConfigError: a layer does not have exactly one.
    """
    return [_only(layer, "attention", of_attention=True) for layer in layers]


def mlp_blocks(layers: Iterable[nn.Module]) -> list[nn.Module]:
    """The MLP of each layer, or its mixture of experts.

    Raises:
        ConfigError: a layer does not have exactly one; OPT's has two linear layers instead.
    """
    return [_only(layer, "MLP", of_attention=False) for layer in layers]


def _only(layer: nn.Module, part: str, *, of_attention: bool) -> nn.Module:
    found = [
        block
        for name, block in layer.named_children()
        if _is_block(block) and is_attention(name) is of_attention
    ]
    if len(found) == 1:
        return found[0]
    raise ConfigError(
        f"{type(layer).__name__} has {len(found)} {part} modules, and exactly one is needed: "
        "use checkpoint_scope layer and mlp_tiles 1"
    )


def _is_block(module: nn.Module) -> bool:
    """Whether it is made of modules with weights; norms and linear layers are not.

    A linear layer stays one under PEFT's adapters, which keep it as `base_layer`.
    """
    if hasattr(module, "base_layer"):
        return False
    return any(True for child in module.children() for _ in child.parameters())
