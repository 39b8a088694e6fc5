"""A model without memory: the real architecture, as trials build it, of few layers.

Built under a mode in which tensors have shapes and no values. Does not know what is read from it.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import nn

from autotune.knob_values import Attention
from autotune.profile.gpu_kernels import FLASH_ATTENTION
from autotune.profile.variant import Variant
from autotune.question.workload import ModelShape
from autotune.techniques.adapters import wrap_lora
from autotune.techniques.blocks import decoder_layers
from autotune.techniques.kernels import choose_experts, patch_kernels
from autotune.worker.model import build_empty

__all__ = ["build_skeleton", "layer_kinds", "shortened", "shortened_to"]

_DTYPES = {2: torch.bfloat16, 4: torch.float32}


def build_skeleton(shape: ModelShape, variant: Variant) -> nn.Module:
    """The model of a variant; to be called where tensors have no memory."""
    is_flash = variant.attention is Attention.FLASH
    name = FLASH_ATTENTION if is_flash else str(variant.attention)
    dtype = _DTYPES[variant.element_bytes]
    model = build_empty(shape, dtype, name)
    choose_experts(model, variant.experts)
    if variant.fused_kernels:
        patch_kernels(model)
    if variant.lora_rank:
        with _made_as(dtype):
            model = wrap_lora(
                model,
                decoder_layers(model, shape.num_hidden_layers),
                rank=variant.lora_rank,
                alpha=0,
                targets=variant.lora_targets,
            )
    return model.train()


@contextlib.contextmanager
def _made_as(dtype: torch.dtype) -> Iterator[None]:
    """Have adapters made in their dtype, since weights without memory cannot be converted."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with mock.patch.object(nn.Module, "_apply", lambda self, *_, **__: self):
            yield
    finally:
        torch.set_default_dtype(before)


def layer_kinds(model: nn.Module, num_layers: int) -> list[Any]:
    """What each decoder layer is, so that equal ones keep and cost the same."""
    config: Any = model.config
    types = getattr(config, "layer_types", None) or [""] * num_layers
    return [
        (
            layer_type,
            tuple((name, tuple(weight.shape)) for name, weight in layer.named_parameters()),
            tuple(type(module).__name__ for module in layer.modules()),
            _switches(layer),
        )
        for layer_type, layer in zip(types, decoder_layers(model, num_layers), strict=True)
    ]


def _switches(layer: nn.Module) -> tuple[Any, ...]:
    """Plain settings of the layer's modules, such as a window; not the layer's own number."""
    return tuple(
        (name, value)
        for module in layer.modules()
        for name, value in sorted(vars(module).items())
        if isinstance(value, bool | float) or (isinstance(value, int) and "layer" not in name)
    )


def shortened(shape: ModelShape, kinds: list[Any]) -> tuple[ModelShape, dict[int, int]]:
    """The model cut behind the first layer of its last new kind, but of two layers at least.

    Returns:
        Its shape, and for the last layer of each kind in it how many there are in the whole.
    """
    num_layers = max(2, 1 + max(kinds.index(kind) for kind in kinds))
    num_layers = min(num_layers, len(kinds))
    counts = Counter(kinds)
    last = {kind: index for index, kind in enumerate(kinds[:num_layers])}
    return shortened_to(shape, num_layers), {index: counts[kind] for kind, index in last.items()}


def shortened_to(shape: ModelShape, num_layers: int) -> ModelShape:
    """The model cut behind so many layers."""
    config = _shortened_config(shape.config, shape.num_hidden_layers, num_layers)
    return replace(shape, num_hidden_layers=num_layers, config=config)


def _shortened_config(config: Mapping[str, Any], whole: int, num_layers: int) -> dict[str, Any]:
    """A configuration whose numbers of layers, and lists of one entry a layer, are cut."""
    names = {"num_hidden_layers", "num_layers", "n_layer", "n_layers"}
    short = dict(config)
    for key, value in config.items():
        if key in names and value == whole:
            short[key] = num_layers
        elif isinstance(value, list) and len(value) == whole:
            short[key] = value[:num_layers]
    return short
