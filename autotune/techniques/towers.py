"""The parts of a vision-language model beside its language part: vision tower and projector.

In a trial tensors of as many elements stand for them, since trials have no images. Frozen ones are
held; trained ones have gradients of zeros, and all that an engine keeps for such weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["Tower", "add_tower", "freeze_towers", "language_config"]

_PIECE = 2**22
"""Elements of a tensor that stands for weights: about those of a tower's larger matrices."""


class _WithoutInfluence(torch.autograd.Function):
    """Hands rows on, and gives weights gradients of zeros."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        ctx.forms = [(weight.shape, weight.dtype, weight.device) for weight in weights]
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        zeros = (
            torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.forms
        )
        return gradient, *zeros


class Tower(nn.Module):
    """Weights beside a language model, which add nothing to what passes.

    Args:
        num_parameters: all of them.
        dtype: theirs.
        is_trained: whether they have gradients; otherwise no forward reads them.
    """

    def __init__(self, num_parameters: int, dtype: torch.dtype, *, is_trained: bool) -> None:
        super().__init__()
        num_whole, rest = divmod(num_parameters, _PIECE)
        sizes = [_PIECE] * num_whole + [rest] * (rest > 0)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.empty(size, dtype=dtype), requires_grad=is_trained)
            for size in sizes
        )

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows as they are, [samples, tokens, hidden size]."""
        passed: torch.Tensor = _WithoutInfluence.apply(rows, *self.weights)  # type: ignore[no-untyped-call]
        return passed


def add_tower(
    model: nn.Module, num_parameters: int, dtype: torch.dtype, *, is_trained: bool
) -> None:
    """Have a causal language model hold, or train, as many parameters beside its own.

    Trained ones are behind the embedding, where a vision-language model puts its images in: their
    gradients are the last of backward.
    """
    tower = Tower(num_parameters, dtype, is_trained=is_trained)
    model.add_module("tower", tower)
    if is_trained:
        embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
        embedding.register_forward_hook(lambda module, args, rows: tower(rows))


def language_config(model: nn.Module) -> Any:
    """The configuration of a model's language part; of a language model its own."""
    config: Any = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def freeze_towers(model: nn.Module) -> None:
    """Freeze what is not of the language part; a language model is left as it is."""
    if language_config(model) is model.config:
        return
    whole: Any = model
    parts = (whole.get_decoder(), whole.get_output_embeddings())
    own = {id(parameter) for part in parts for parameter in part.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in own:
            parameter.requires_grad_(False)
