"""Activation checkpointing: keep the inputs of layers or blocks for backward, recompute the rest.

Works on any model whose decoder layers are called one after the other, each on the output of the
one before (all of Hugging Face's causal models). Knows no architecture.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from autotune.errors import ConfigError
from autotune.knob_values import CheckpointScope, Offload
from autotune.space.strategy import Strategy
from autotune.techniques.blocks import attention_blocks, mlp_blocks
from autotune.techniques.subclass import subclass

__all__ = ["checkpoint_activations", "checkpoint_layers"]


def checkpoint_activations(layers: Iterable[nn.Module], strategy: Strategy) -> None:
    """Recompute in backward what the strategy says of the decoder layers, in place.

    Raises:
        ConfigError: it was done to them before, or they have no such blocks.
    """
    if strategy.checkpoint_scope is CheckpointScope.ATTENTION:
        layers = attention_blocks(layers)
    elif strategy.checkpoint_scope is CheckpointScope.MLP:
        layers = mlp_blocks(layers)
    checkpoint_layers(
        layers,
        strategy.checkpoint_interval,
        on_host=strategy.offload_checkpoints is Offload.CPU,
    )


def checkpoint_layers(
    layers: Iterable[nn.Module], interval: int, *, on_host: bool = False
) -> None:
    """Keep the input of every `interval`-th layer for backward and recompute the rest, in place.

    Chen et al., Training Deep Nets with Sublinear Memory Cost (arXiv 1604.06174), section 3.

    Args:
        layers: called one after the other; at interval 1 other modules may stand between them.
        interval: layers that are recomputed together.
        on_host: whether kept inputs wait in host memory, pinned where there is a GPU.

    Raises:
        ConfigError: it was done to these layers before.
    """
    members = list(layers)
    if any(hasattr(layer, "_run_layer") for layer in members):
        raise ConfigError(
            "checkpoint_interval is set on this model already; call autotune.apply once"
        )
    for start in range(0, len(members), interval):
        span = _Span(members[start : start + interval], on_host=on_host)
        for index, layer in enumerate(span.layers):
            _defer(layer, span, index)


def _defer(layer: nn.Module, span: _Span, index: int) -> None:
    """Make calls of `layer` go through its span, in front of the module's own hooks."""
    # Held by the layer, so that the span of a copied model holds the copied layers.
    layer._span = span  # type: ignore[assignment]
    layer._span_index = index  # type: ignore[assignment]
    original: Any = type(layer)
    layer.__class__ = _deferring(original)


@functools.cache
def _deferring(original: Any) -> type:
    """The subclass for all layers of a class, since compiled code is shared by layers of one."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._span.call(self._span_index, args, kwargs)

    return subclass(original, __call__=call, _run_layer=original.__call__)


class _Span:
    """Consecutive layers that are recomputed together.

    All but the last only write down how they were called and hand their input on; the last one
    runs them all under one checkpoint. Each layer keeps its own arguments, since models with mixed
    attention pass another mask to every second layer.
    """

    def __init__(self, layers: list[nn.Module], *, on_host: bool) -> None:
        self.layers = layers
        self._on_host = on_host
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
        if is_zero3 and any(
            _has_gradient(value) for args, kwargs in calls for value in (*args, *kwargs.values())
        ):
            raise ConfigError(
                f"checkpoints under zero_stage 3 need modules of one input that has a gradient; "
                f"{type(layers[0]).__name__} takes more"
            )
        if is_zero3 and not hidden.requires_grad:
            # It gives gradients only where its input asks for one; a frozen embedding's does not.
            hidden = hidden.detach().requires_grad_()
        with self._storage():
            return checkpoint(self._run, hidden, layers, calls, use_reentrant=is_zero3)

    def _storage(self) -> AbstractContextManager[Any]:
        """Where the one tensor is kept that a checkpoint saves: the input of its first layer."""
        # Pinned and asynchronous on a GPU; on the CPU, where it is a copy, an ordinary tensor.
        return save_on_cpu(pin_memory=True) if self._on_host else nullcontext()

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


def _has_gradient(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


def _split_hidden(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.Tensor, tuple[Any, ...], dict[str, Any]]:
    """The layer's input, and the rest of its arguments."""
    if args:
        return args[0], args[1:], kwargs
    rest = dict(kwargs)
    return rest.pop("hidden_states"), (), rest
