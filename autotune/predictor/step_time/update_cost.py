"""The cost of updating one parameter on a device: bytes moved, and instructions.

Of the optimizer's step alone. Does not know how many parameters there are, nor at which rates.
"""

from __future__ import annotations

from dataclasses import dataclass

from autotune.predictor.memory.optimizer_states import state_bytes
from autotune.predictor.memory.precision import master_bytes
from autotune.space.optimizers import OPTIMIZERS
from autotune.space.strategy import Strategy

__all__ = ["UpdateCost", "update_cost"]


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateCost:
    """The cost of updating one parameter."""

    moved_bytes: float
    instructions: float
    """Instructions of a thread; 0 where memory surely takes longer."""
    paged_bytes: float
    """Bytes in managed memory, each page of which is asked for before."""


def update_cost(strategy: Strategy) -> UpdateCost:
    """The update of one parameter, by kernels over large tensors.

    Weight and gradient have the precision of the master weights. States are read and written.
    """
    facts, weight = OPTIMIZERS[strategy.optimizer], master_bytes(strategy)
    states = sum(state_bytes(form, weight) for form in facts.states)
    return UpdateCost(
        moved_bytes=facts.passes * weight + 2 * states,
        instructions=facts.instructions,
        # Absolute maxima are not: `optim/optimizer.py`, `get_state_buffer`.
        paged_bytes=len(facts.states) if facts.is_paged else 0,
    )
