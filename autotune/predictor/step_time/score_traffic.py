"""What attention moves beside its products: scores, masks of padding, exchanges of Ulysses."""

from __future__ import annotations

from autotune.knob_values import Attention
from autotune.question.workload import ModelShape
from autotune.space.strategy import Strategy

__all__ = ["MASK_SLOWDOWN", "attention_traffic"]

MASK_SLOWDOWN = 4.0
"""Times that attention with a mask takes: twice the pairs, since a mask hides from the kernel that
it is causal, in PyTorch's memory-efficient kernel, which attains about half of FlashAttention 2's
rate: Dao, FlashAttention-2 (arXiv 2307.08691), section 4.1, figure 4 (xformers, CUTLASS)."""

_EAGER_BYTES = (24, 34)
"""Bytes of eager attention for one score at 16 bit, forward and backward: scaling, mask, softmax
in fp32 and its two conversions (`models/llama/modeling_llama.py`, `eager_attention_forward`)."""


def attention_traffic(
    shape: ModelShape,
    strategy: Strategy,
    *,
    attended: float,
    has_mask: bool,
    element_bytes: float,
    repeats: int,
) -> float:
    """Bytes that a layer's attention moves for one token, beside its pointwise kernels.

    Args:
        shape: the architecture.
        strategy: how attention is computed and divided.
        attended: tokens of the sample that the token lies in.
        has_mask: whether a mask of padding stands.
        element_bytes: bytes of a number in attention.
        repeats: how often backward recomputes attention.
    """
    degree, moved = strategy.tensor_parallel_size, 0.0
    if strategy.sequence_parallel_size > 1:
        moved += _exchanged(shape, repeats) * element_bytes
    if strategy.attention is Attention.EAGER:
        forward, backward = _EAGER_BYTES
        scores = shape.num_attention_heads * attended / degree
        moved += ((1 + repeats) * forward + backward) * element_bytes / 2 * scores
    if has_mask:
        moved += (2 + repeats) * _masked(shape, attended, element_bytes, degree)
    return moved


def _masked(shape: ModelShape, attended: float, element_bytes: float, degree: int) -> float:
    """Bytes of one pass with a mask.

    The bias is made of the mask and read by every head; keys and values are repeated for each
    query head, and their gradients summed up (`memory/micro_batch.py`, `with_mask`).
    """
    heads, keys = shape.num_attention_heads, shape.num_key_value_heads
    bias = (1 + element_bytes + element_bytes * heads / degree) * attended
    repeated = 2 * (heads - keys) * shape.head_dim
    return bias + 2 * element_bytes * repeated / degree


def _exchanged(shape: ModelShape, repeats: int) -> float:
    """Numbers that Ulysses copies before and behind each exchange, in forward and in backward.

    `ulysses_sp.py`: queries, keys and values are copied twice each, the output three times.
    """
    queries = shape.num_attention_heads * shape.head_dim
    keys = shape.num_key_value_heads * shape.head_dim
    return 2 * (2 + repeats) * (2 * (queries + 2 * keys) + 3 * queries)
