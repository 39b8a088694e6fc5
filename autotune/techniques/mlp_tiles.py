"""MLPs computed in tiles along the tokens, so that one tile's intermediates are alive at a time.

Arctic Long Sequence Training (arXiv 2506.13996). DeepSpeed's own `TiledMLP` is not used: it draws
other dropout in backward than in forward, loses the gradients of weights whose input needs none
(adapters behind a frozen embedding), and fires ZeRO's gradient hooks in a backward of its own.
torch's checkpoint of each tile is part of one graph, in which each weight has one gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from autotune.errors import ConfigError
from autotune.techniques.subclass import subclass

__all__ = ["tile_mlps"]


def tile_mlps(mlps: Iterable[nn.Module], num_tiles: int) -> None:
    """Compute each MLP in `num_tiles` pieces, and each piece again in backward, in place.

    Raises:
        ConfigError: it was done to one of them before.
    """
    for mlp in mlps:
        if hasattr(mlp, "_run_whole"):
            raise ConfigError("mlp_tiles is set on this model already; call autotune.apply once")
        original: Any = type(mlp)
        mlp.__class__ = _tiling(original, num_tiles)


@functools.cache
def _tiling(original: Any, num_tiles: int) -> type:
    """The subclass for all MLPs of a class, whose calls run tile by tile, before its own hooks."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.training:
            return self._run_whole(*args, **kwargs)
        return _run_tiles(self, _only_input(self, args, kwargs), num_tiles)

    return subclass(original, __call__=call, _run_whole=original.__call__)


def _run_tiles(mlp: Any, hidden: torch.Tensor, num_tiles: int) -> torch.Tensor:
    """The MLP's output for `hidden`, [..., tokens, hidden size]."""

    def run(tile: torch.Tensor) -> Any:
        # Made contiguous in here, where it is not kept: some MLPs take views of their input.
        return mlp._run_whole(tile.contiguous())

    tiles = hidden.tensor_split(min(num_tiles, hidden.shape[-2]), dim=-2)
    return torch.cat([checkpoint(run, tile, use_reentrant=False) for tile in tiles], dim=-2)


def _only_input(mlp: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    inputs = [*args, *kwargs.values()]
    if len(inputs) == 1 and isinstance(inputs[0], torch.Tensor):
        return inputs[0]
    raise ConfigError(
        f"mlp_tiles needs MLPs of one input; {type(mlp).__name__} takes {len(inputs)}"
    )
