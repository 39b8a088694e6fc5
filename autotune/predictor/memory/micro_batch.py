"""The tokens of one micro-batch on one rank: at most, in the mean, and as attention sees them.

Without lengths all samples have `seq_len` tokens. Does not know memory or time.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.knob_values import Attention, Batching, CheckpointScope
from autotune.predictor.memory.activations import TokenBytes
from autotune.predictor.memory.precision import group_bytes
from autotune.predictor.memory.sharding import tokens_of_rank
from autotune.question.workload import Workload
from autotune.space.strategy import Strategy

__all__ = [
    "attended_tokens",
    "computed_tokens",
    "has_mask",
    "longest_tokens",
    "with_mask",
]

_MULTIPLE = 8
"""Trials pad to a multiple of so many tokens."""


def longest_tokens(workload: Workload, strategy: Strategy) -> int:
    """Tokens of the longest micro-batch that can be drawn, on one rank."""
    if workload.lengths is None or strategy.batching is Batching.PACKED:
        return tokens_of_rank(strategy, workload.seq_len)
    if strategy.batching is Batching.PADDING_FREE:
        return tokens_of_rank(strategy, workload.longest)
    return tokens_of_rank(strategy, int(_padded(workload, strategy, workload.longest)))


def computed_tokens(workload: Workload, strategy: Strategy) -> float:
    """Tokens of a micro-batch on one rank in the mean, with padding."""
    if workload.lengths is None or strategy.batching is Batching.PACKED:
        return tokens_of_rank(strategy, workload.seq_len)
    if strategy.batching is Batching.PADDING_FREE:
        return strategy.micro_batch_size * workload.lengths.mean
    of_sample = _expected_padded(workload, strategy)
    return strategy.micro_batch_size * of_sample / strategy.sequence_parallel_size


def attended_tokens(workload: Workload, strategy: Strategy) -> float:
    """Tokens of the sample that a token lies in, in the mean over tokens."""
    if workload.lengths is None:
        return workload.seq_len
    if strategy.batching is Batching.PADDED:
        return _expected_padded(workload, strategy)
    return workload.lengths.mean_square / workload.lengths.mean


def has_mask(workload: Workload, strategy: Strategy) -> bool:
    """Whether attention gets a mask of padding beside its own: kernels and copies are others then.

    A pipeline and Ulysses hand on none.
    """
    return (
        workload.lengths is not None
        and strategy.batching is Batching.PADDED
        and strategy.attention is Attention.SDPA
        and strategy.pipeline_parallel_size == 1
        and strategy.sequence_parallel_size == 1
    )


def with_mask(token: TokenBytes, workload: Workload, strategy: Strategy) -> TokenBytes:
    """The bytes of a token of attention with a mask.

    transformers repeats keys and values for every query head where there is a mask
    (`integrations/sdpa_attention.py`, `use_gqa_in_sdpa`), and makes the mask once for all layers,
    a byte for each pair. PyTorch makes a bias of it in each layer, which backward needs
    (`ATen/native/transformers/attention.cpp`, `convert_boolean_attn_mask`).
    """
    if not has_mask(workload, strategy):
        return token
    shape, size = workload.model, group_bytes(strategy).attention
    row = int(_padded(workload, strategy, workload.longest))
    copied = 2 * (shape.num_attention_heads - shape.num_key_value_heads) * shape.head_dim
    more = size * (copied // strategy.tensor_parallel_size + row)
    recomputes = strategy.checkpoint_interval and (
        strategy.checkpoint_scope is CheckpointScope.ATTENTION
    )
    if recomputes:
        return replace(token, recomputed=token.recomputed + more, head=token.head + row)
    return replace(token, layer=token.layer + more, head=token.head + row)


def _expected_padded(workload: Workload, strategy: Strategy) -> float:
    assert workload.lengths is not None
    longest = workload.lengths.expected_longest(strategy.micro_batch_size)
    # Half of the multiple is added in the mean.
    return _padded(workload, strategy, longest + (_MULTIPLE - 1) / 2, is_mean=True)


def _padded(
    workload: Workload, strategy: Strategy, tokens: float, *, is_mean: bool = False
) -> float:
    """A length with its padding, as `worker/natural_batches.py` pads it."""
    if strategy.pipeline_parallel_size > 1:
        return workload.seq_len
    if is_mean:
        return min(tokens, workload.seq_len)
    multiple = _MULTIPLE * strategy.sequence_parallel_size
    padded = -(-tokens // multiple) * multiple
    return padded if strategy.sequence_parallel_size > 1 else min(padded, workload.seq_len)
