"""The parts of a vision-language model beside its language part: vision tower and projector.

Held and not trained. In a trial tensors of as many elements stand for them, since trials have no
images.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["FrozenTower", "freeze_towers", "language_config"]

_PIECE = 2**22
"""Elements of a tensor that stands for weights: about those of a tower's larger matrices."""


class FrozenTower(nn.Module):
    """Frozen weights that no forward reads."""

    def __init__(self, num_parameters: int, dtype: torch.dtype) -> None:
        super().__init__()
        num_whole, rest = divmod(num_parameters, _PIECE)
        sizes = [_PIECE] * num_whole + [rest] * (rest > 0)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.empty(size, dtype=dtype), requires_grad=False) for size in sizes
        )


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
