"""How often backward recomputes the forward of each part of a model.

Does not know what a part costs.
"""

from __future__ import annotations

from dataclasses import dataclass

from autotune.knob_values import CheckpointScope
from autotune.space.strategy import Strategy

__all__ = ["Repeats", "repeats"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Repeats:
    """How often backward recomputes the forward of each part."""

    attention: int
    mlp: int
    rest: int
    """Norms and residuals of a layer."""
    head: int


def repeats(strategy: Strategy) -> Repeats:
    """How often each part is recomputed; a tile within a checkpointed layer runs three times."""
    is_on, scope = strategy.checkpoint_interval > 0, strategy.checkpoint_scope
    whole = int(is_on and scope is CheckpointScope.LAYER)
    return Repeats(
        attention=whole or int(is_on and scope is CheckpointScope.ATTENTION),
        mlp=(whole or int(is_on and scope is CheckpointScope.MLP)) + (strategy.mlp_tiles > 1),
        rest=whole,
        head=int(strategy.loss_tiles > 1),
    )
