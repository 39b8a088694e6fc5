"""The states that each optimizer keeps of a parameter, beside its weight and its master weight.

Does not know where it is kept, nor over how many ranks ZeRO divides it.
"""

from __future__ import annotations

from autotune.knobs import Optimizer
from autotune.predictor.precision import FP32_BYTES, element_bytes, master_bytes
from autotune.predictor.shares import RankShare
from autotune.question.workload import ModelShape
from autotune.space.deepspeed_config import flattens_parameters
from autotune.space.strategy import Strategy

__all__ = ["optimizer_state_bytes"]

_MOMENT_8BIT_BYTES = 1 + FP32_BYTES / 256
"""A byte, with an fp32 absmax for each block of 256 (bitsandbytes)."""


def optimizer_state_bytes(
    strategy: Strategy, shape: ModelShape, share: RankShare, num_trained: int
) -> float:
    """Bytes of states for one parameter that is trained, as a mean over the share.

    Adafactor keeps a row and a column for each matrix: Shazeer and Stern (arXiv 1804.04235),
    section 3. Muon keeps one momentum for the matrices of the layers and is AdamW for all else.
    """
    moment = master_bytes(strategy)
    match strategy.optimizer:
        case Optimizer.ADAMW:
            return 2 * moment
        case Optimizer.ADAMW_8BIT | Optimizer.PAGED_ADAMW_8BIT:
            return 2 * _8bit_moment(strategy, share, num_trained)
        case Optimizer.LION:
            return FP32_BYTES  # bitsandbytes keeps it so whatever the master's precision
        case Optimizer.LION_8BIT:
            return _8bit_moment(strategy, share, num_trained)
        case Optimizer.SGD:
            return moment
        case Optimizer.ADAFACTOR:
            part = share.num_layers / shape.num_hidden_layers
            return FP32_BYTES * 2 * shape.linear_sides * part / max(num_trained, 1)
        case Optimizer.MUON:
            return _muon(strategy, share, num_trained, moment)


def _muon(strategy: Strategy, share: RankShare, num_trained: int, moment: int) -> float:
    """One momentum of matrices, which ZeRO keeps in the precision of gradients.

    `zero/muon/original_muon.py`; `stage_1_and_2.py`, `_muon_momentum_buffer`; `stage3.py`,
    `_create_momentum_buffer`.
    """
    num_matrices = num_trained if strategy.lora_rank else share.parameters.linears
    momentum = element_bytes(strategy) if strategy.zero_stage else moment
    return (momentum * num_matrices + 2 * moment * (num_trained - num_matrices)) / max(
        num_trained, 1
    )


def _8bit_moment(strategy: Strategy, share: RankShare, num_trained: int) -> float:
    """Embeddings keep theirs in fp32, wherever the optimizer sees which parameter is which.

    Dettmers et al., 8-bit Optimizers (arXiv 2110.02861), section 2.3; `techniques/optimizers.py`.
    """
    if flattens_parameters(strategy) or strategy.lora_rank:
        return _MOMENT_8BIT_BYTES
    in_fp32 = share.parameters.embedding / max(num_trained, 1)
    return _MOMENT_8BIT_BYTES + (FP32_BYTES - _MOMENT_8BIT_BYTES) * in_fp32
