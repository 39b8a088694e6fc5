"""The states that each optimizer keeps for a parameter, beside weight and master weight.

Does not know where states are kept, nor over how many ranks ZeRO divides them.
"""

from __future__ import annotations

import bisect
import math

from autotune.predictor.memory.precision import FP32_BYTES, element_bytes, master_bytes
from autotune.predictor.memory.sharding import RankShard
from autotune.question.workload import ModelShape
from autotune.space.deepspeed_config import flattens_parameters
from autotune.space.optimizers import OPTIMIZERS, StateForm
from autotune.space.strategy import Strategy

__all__ = ["ABSMAX_BYTES", "muon_border_elements", "optimizer_state_bytes", "state_bytes"]

ABSMAX_BYTES = FP32_BYTES / 256
"""An fp32 absmax for each block of 256 numbers in 8 bit (bitsandbytes)."""


def state_bytes(form: StateForm, master: int) -> float:
    """Bytes of one parameter in a state tensor of this form.

    Args:
        form: precision and layout of the tensor.
        master: bytes of one master weight.
    """
    match form:
        case StateForm.MASTER:
            return master
        case StateForm.FP32:
            return FP32_BYTES
        case StateForm.BLOCKWISE_8BIT:
            return 1 + ABSMAX_BYTES


def optimizer_state_bytes(
    strategy: Strategy, shape: ModelShape, shard: RankShard, num_trained: int
) -> float:
    """Bytes of states for one trained parameter, as a mean over the shard.

    Muon keeps one momentum for the matrices of the layers, and treats all other parameters as
    AdamW does.
    """
    facts, moment = OPTIMIZERS[strategy.optimizer], master_bytes(strategy)
    if facts.is_factored:
        part = shard.num_layers / shape.num_hidden_layers
        return FP32_BYTES * 2 * shape.linear_sides * part / max(num_trained, 1)
    if facts.needs_whole_matrices:
        return _muon(strategy, shard, num_trained, moment)
    if facts.is_8bit:
        return len(facts.states) * _8bit_moment(strategy, shard, num_trained)
    return sum(state_bytes(form, moment) for form in facts.states)


def _muon(strategy: Strategy, shard: RankShard, num_trained: int, moment: int) -> float:
    """Bytes of Muon's states for one trained parameter: ZeRO keeps the momentum as gradients are.

    `zero/muon/original_muon.py`; `stage_1_and_2.py`, `_muon_momentum_buffer`; `stage3.py`,
    `_create_momentum_buffer`.
    """
    num_matrices = num_trained if strategy.lora_rank else shard.parameters.linears
    momentum = element_bytes(strategy) if strategy.zero_stage else moment
    return (momentum * num_matrices + 2 * moment * (num_trained - num_matrices)) / max(
        num_trained, 1
    )


def muon_border_elements(shape: ModelShape, num_layers: int, num_ranks: int) -> int:
    """Elements of matrices that a rank's momentum has beyond its partition, on the worst rank.

    Stages 1 and 2 keep the momentum of every matrix that reaches into a partition, whole
    (`stage_1_and_2.py`, `_muon_momentum_buffer`). The matrices lie one after the other in the
    order of their shapes, the largest first (`original_muon.py`, `MuonWithAuxAdam`).

    Args:
        shape: the model.
        num_layers: decoder layers whose matrices are divided.
        num_ranks: over which they are divided.
    """
    ends = [0]
    for size in _matrix_shapes(shape):
        elements = math.prod(size)
        ends += [ends[-1] + elements * number for number in range(1, num_layers + 1)]
    part = ends[-1] / num_ranks
    held = 0
    for rank in range(num_ranks):
        first = ends[bisect.bisect_right(ends, rank * part) - 1]
        last = ends[min(bisect.bisect_left(ends, (rank + 1) * part), len(ends) - 1)]
        held = max(held, last - first)
    return max(0, held - int(part))


def _matrix_shapes(shape: ModelShape) -> list[tuple[int, ...]]:
    """Weights of one decoder layer as torch has them, the largest first; its experts are one."""
    attention = [(outputs, inputs) for inputs, outputs in shape.attention_linears.values()]
    mlp: list[tuple[int, ...]] = [(o, i) for i, o in shape.mlp_linears.values()]
    if shape.num_experts > 1:
        mlp = [(shape.num_experts, *size) for size in mlp]
    return sorted([*attention, *mlp], reverse=True)


def _8bit_moment(strategy: Strategy, shard: RankShard, num_trained: int) -> float:
    """Bytes of one 8-bit moment; embeddings keep fp32 if the optimizer sees single parameters.

    Dettmers et al., 8-bit Optimizers (arXiv 2110.02861), section 2.3; `techniques/optimizers.py`.
    """
    moment = state_bytes(StateForm.BLOCKWISE_8BIT, FP32_BYTES)
    if flattens_parameters(strategy) or strategy.lora_rank:
        return moment
    in_fp32 = shard.parameters.embedding / max(num_trained, 1)
    return moment + (FP32_BYTES - moment) * in_fp32
