"""Logits and loss computed in tiles along the tokens, so that no logits are held as a whole.

Arctic Long Sequence Training (arXiv 2506.13996). DeepSpeed's own
`TiledFusedLogitsLoss` is not used: it computes the output projection's gradient in forward, where
neither the loss scale nor the division by the accumulation steps has reached it, and a tied
embedding would be reduced twice. Here the model's own forward runs behind its decoder once a tile,
under torch's checkpoint: whatever stands between decoder and loss stays the model's.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from autotune.errors import ConfigError
from autotune.techniques.blocks import causal_model
from autotune.techniques.subclass import subclass

__all__ = ["tile_loss"]

_IGNORED = -100
"""The label of a token that is not learned: transformers' own."""


def tile_loss(model: nn.Module, num_tiles: int) -> None:
    """Compute loss and logits of `model(input_ids, labels=labels)` in tiles, in place.

    In training with labels only; the output then has no logits.

    Args:
        model: a causal model of transformers, or PEFT's wrapper around one.
        num_tiles: pieces along the tokens.

    Raises:
        ConfigError: it was done before, or the model cannot compute its loss in pieces.
    """
    causal: Any = causal_model(model)
    words = _refusal(causal)
    if words:
        raise ConfigError(f"loss_tiles: {words}")
    _let_stand_in(causal.get_decoder())
    original: Any = type(causal)
    signature = inspect.signature(original.forward)
    [rest] = [p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]

    @functools.wraps(original.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs).arguments
        if not self.training or given.get("labels") is None:
            return original.forward(self, *args, **kwargs)
        del given["self"]
        return _run_tiles(self, original.forward, num_tiles, given.pop(rest, {}), **given)

    causal.__class__ = subclass(original, forward=forward)


def _refusal(causal: Any) -> str | None:
    name = type(causal).__name__
    if not hasattr(causal, "get_decoder"):
        return f"{name} is not a causal model of transformers"
    if hasattr(causal.get_decoder(), "_stand_in"):
        return "set on this model already; call autotune.apply once"
    if "forward" in vars(causal):
        return f"the forward of this {name} was replaced by another library"
    forward = inspect.unwrap(type(causal).forward)
    if "loss_function" not in forward.__code__.co_names or not _takes_more(forward):
        return f"{name} does not compute its loss by transformers' loss_function"
    if getattr(causal.config, "output_router_logits", False):
        return "output_router_logits adds a loss of the whole batch; set it to false"
    return None


def _takes_more(forward: Callable[..., Any]) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(forward).parameters.values())


def _let_stand_in(decoder: nn.Module) -> None:
    """Let calls of `decoder` return what stands in for its output, while something does."""
    original: Any = type(decoder)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._stand_in is not None:
            return self._stand_in
        return original.__call__(self, *args, **kwargs)

    decoder._stand_in = None  # type: ignore[assignment]
    decoder.__class__ = subclass(original, __call__=call)


def _run_tiles(
    causal: Any,
    forward: Callable[..., Any],
    num_tiles: int,
    extra: dict[str, Any],
    *,
    labels: torch.Tensor,
    logits_to_keep: Any = 0,
    **inputs: Any,
) -> Any:
    """The output of the model's `forward`, with the loss alone.

    Args:
        causal: the model.
        forward: its class's own forward.
        num_tiles: pieces along the tokens.
        extra: what its caller gave beside the arguments that forward names; for decoder and loss.
        labels: [samples, tokens], not shifted yet.
        logits_to_keep: of no meaning where no logits are returned.
        inputs: the other arguments that forward names, which are the decoder's too.
    """
    from transformers.modeling_outputs import CausalLMOutput

    as_tuple = extra.pop("return_dict", None) is False
    decoder = causal.get_decoder()
    output = decoder(**inputs, **extra, return_dict=True)
    hidden = output.last_hidden_state
    # transformers' names for labels that are shifted already, and for the divisor of the loss.
    targets, ignored = extra.pop("shift_labels", None), extra.get("ignore_index", _IGNORED)
    if targets is None:
        targets = nn.functional.pad(labels[..., 1:], (0, 1), value=ignored)
    count = extra.pop("num_items_in_batch", None)
    if count is None:
        count = (targets != ignored).sum()

    def loss_of(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        targets = targets.contiguous()
        decoder._stand_in = type(output)(last_hidden_state=hidden.contiguous())
        try:
            loss: torch.Tensor = forward(
                causal, labels=targets, shift_labels=targets, num_items_in_batch=count, **extra
            )[0]
        finally:
            decoder._stand_in = None
        return loss

    pieces = min(num_tiles, hidden.shape[1])
    losses = [
        checkpoint(loss_of, tile, tile_targets, use_reentrant=False)
        for tile, tile_targets in zip(
            hidden.tensor_split(pieces, dim=1), targets.tensor_split(pieces, dim=1), strict=True
        )
    ]
    whole = CausalLMOutput(
        loss=torch.stack(losses).sum(),
        hidden_states=output.hidden_states,
        attentions=output.attentions,
    )
    return whole.to_tuple() if as_tuple else whole
