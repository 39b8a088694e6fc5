"""Activation checkpointing by interval: keep the input of every k-th layer, recompute between.

Works on any model whose decoder layers are called one after the other, each on the output of the
one before (all of Hugging Face's causal models). Knows no architecture.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from autotune.errors import ConfigError

__all__ = ["checkpoint_layers", "decoder_layers"]


def decoder_layers(model: nn.Module, num_layers: int) -> nn.ModuleList:
    """The list of the model's decoder layers.

    Raises:
        ConfigError: no list of `num_layers` modules is found.
    """
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return module
    raise ConfigError(
        f"checkpoint_interval needs a model with a list of {num_layers} decoder layers; "
        f"{type(model).__name__} has none"
    )


def checkpoint_layers(layers: nn.ModuleList, interval: int) -> None:
    """Keep the input of every `interval`-th layer for backward and recompute the rest, in place.

    Chen et al., Training Deep Nets with Sublinear Memory Cost (arXiv 1604.06174), section 3.

    Raises:
        ConfigError: it was done to these layers before.
    """
    members = list(layers)
    if any(hasattr(layer, "_run_layer") for layer in members):
        raise ConfigError(
            "checkpoint_interval is set on this model already; call autotune.apply once"
        )
    for start in range(0, len(members), interval):
        span = _Span(members[start : start + interval])
        for index, layer in enumerate(span.layers):
            _defer(layer, span, index)


def _defer(layer: nn.Module, span: _Span, index: int) -> None:
    """Make calls of `layer` go through its span, in front of the module's own hooks.

    The layer's class is replaced by a subclass of the same name, so parameter names, isinstance
    and everything that looks at class names stay as they are.
    """
    original: Any = type(layer)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._span.call(index, args, kwargs)

    # Held by the layer, so that the span of a copied model holds the copied layers.
    layer._span = span  # type: ignore[assignment]
    layer.__class__ = type(
        original.__name__,
        (original,),
        {"__call__": call, "__module__": original.__module__, "_run_layer": original.__call__},
    )


class _Span:
    """Consecutive layers that are recomputed together.

    All but the last only write down how they were called and hand their input on; the last one
    runs them all under one checkpoint. Each layer keeps its own arguments, since models with mixed
    attention pass another mask to every second layer.
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        self.layers = layers
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._is_running = False
        self._returns_tuple: bool | None = None

    def call(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What calling layer `index` of the span does."""
        layer = self.layers[index]
        if self._is_running or not (layer.training and torch.is_grad_enabled()):
            return layer._run_layer(*args, **kwargs)  # type: ignore[operator]
        hidden, args, kwargs = _split_hidden(args, kwargs)
        if self._returns_tuple is None:
            # Whether layers return a tensor or a tuple shows in the first forward only, which
            # therefore keeps every layer's input.
            output = self._checkpoint(hidden, [layer], [(args, kwargs)])
            if index == len(self.layers) - 1:
                self._returns_tuple = isinstance(output, tuple)
            return output
        if index == 0:
            self._calls = []
        self._calls.append((args, kwargs))
        if index < len(self.layers) - 1:
            return (hidden,) if self._returns_tuple else hidden
        calls, self._calls = self._calls, []
        return self._checkpoint(hidden, self.layers, calls)

    def _checkpoint(
        self,
        hidden: torch.Tensor,
        layers: list[nn.Module],
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]],
    ) -> Any:
        # ZeRO-3 frees parameters in a hook after each module's forward. Only a re-entrant
        # recomputation builds a graph of its own, whose backward gathers them again.
        is_zero3 = hasattr(next(layers[0].parameters(), None), "ds_id")
        if is_zero3 and not hidden.requires_grad:
            # It gives gradients only where its input asks for one; a frozen embedding's does not.
            hidden = hidden.detach().requires_grad_()
        return checkpoint(self._run, hidden, layers, calls, use_reentrant=is_zero3)

    def _run(
        self,
        hidden: Any,
        layers: list[nn.Module],
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]],
    ) -> Any:
        self._is_running = True
        try:
            output = hidden
            for layer, (args, kwargs) in zip(layers, calls, strict=True):
                hidden = output[0] if isinstance(output, tuple) else output
                output = layer(hidden, *args, **kwargs)
            return output
        finally:
            self._is_running = False


def _split_hidden(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.Tensor, tuple[Any, ...], dict[str, Any]]:
    """The layer's input, and the rest of its arguments."""
    if args:
        return args[0], args[1:], kwargs
    rest = dict(kwargs)
    return rest.pop("hidden_states"), (), rest
