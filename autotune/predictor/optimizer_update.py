"""The cost of updating one parameter on a device: bytes moved, and instructions.

Of the optimizer's step alone. Does not know how many parameters there are, nor at which rates.
"""

from __future__ import annotations

from dataclasses import dataclass

from autotune.knobs import Optimizer
from autotune.predictor.precision import FP32_BYTES, master_bytes
from autotune.space.strategy import Strategy

__all__ = ["UpdateWork", "update_work"]

_8BIT_BYTES = 1 + FP32_BYTES / 256
"""Of a moment in 8 bit, with an fp32 absmax for each block of 256."""

_INSTRUCTIONS = {
    Optimizer.ADAMW_8BIT: 510,
    Optimizer.PAGED_ADAMW_8BIT: 510,
    Optimizer.LION: 98,
    Optimizer.LION_8BIT: 300,
}
"""That a thread issues for one parameter in bitsandbytes' kernels (`csrc/cuda/optimizers.cu`,
`kOptimizerStatic8bit2StateBlockwise`, `kOptimizerStatic8bit1StateBlockwise`,
`kOptimizer32bit1State`; version 0.50 disassembled for compute capability 9.0). In 8 bit each
parameter has a thread of its own, which looks up both moments in tables of 256 values, finds the
greatest of its block, and searches the tables for the new ones: two searches of seven steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateWork:
    """Of one parameter."""

    moved_bytes: float
    instructions: float
    """0 where memory surely takes longer."""
    paged_bytes: float
    """In managed memory, each page of which is asked for before."""


def update_work(strategy: Strategy) -> UpdateWork:
    """The update of one parameter, by kernels over large tensors.

    Weight and gradient have the precision of the master weights. Read: weight, gradient and
    states; written: weight and states. Torch's SGD passes three times (`optim/sgd.py`,
    `_multi_tensor_sgd`), its Adafactor ten times (`optim/_adafactor.py`,
    `_single_tensor_adafactor`).
    """
    weight = master_bytes(strategy)
    plain = 3 * weight
    match strategy.optimizer:
        case Optimizer.ADAMW | Optimizer.MUON:
            moved: float = plain + 4 * weight
        case Optimizer.ADAMW_8BIT | Optimizer.PAGED_ADAMW_8BIT:
            moved = plain + 4 * _8BIT_BYTES
        case Optimizer.LION:
            moved = plain + 2 * FP32_BYTES
        case Optimizer.LION_8BIT:
            moved = plain + 2 * _8BIT_BYTES
        case Optimizer.SGD:
            moved = 8 * weight
        case Optimizer.ADAFACTOR:
            moved = 17 * weight
    is_paged = strategy.optimizer is Optimizer.PAGED_ADAMW_8BIT
    return UpdateWork(
        moved_bytes=moved,
        instructions=_INSTRUCTIONS.get(strategy.optimizer, 0),
        # Absolute maxima are not: `optim/optimizer.py`, `get_state_buffer`.
        paged_bytes=2 if is_paged else 0,
    )
