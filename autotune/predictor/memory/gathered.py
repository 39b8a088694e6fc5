"""Whole weights that ZeRO-3 has on one rank, by formula.

Does not know how they come and go: `reserved/gathered_weights.py` follows that.
"""

from __future__ import annotations

from autotune.knob_values import CheckpointScope, Offload
from autotune.predictor.memory.precision import group_bytes
from autotune.predictor.memory.sharding import RankShard, zero_size
from autotune.space.strategy import Strategy

__all__ = ["gathered_beside", "gathered_weights", "span_weights"]

_LIVE_ELEMENTS = 1_000_000_000
"""ZeRO-3 keeps so many gathered parameters at most (`zero/config.py`, `max_live_parameters`)."""

_PREFETCHED_ELEMENTS = 50_000_000
"""Elements that ZeRO-3 reads ahead at once (`stage3_prefetch_bucket_size`), and at most one weight
more."""


def gathered_weights(strategy: Strategy, shard: RankShard, num_ranks: int) -> int:
    """Bytes of whole weights at once; from NVMe nothing is read ahead or kept for its next use.

    Measured: one rank's part on the device is the whole weight, and nothing is copied.
    """
    parameters, sizes = shard.parameters, group_bytes(strategy)
    if zero_size(strategy, num_ranks) == 1 and strategy.offload_param is Offload.NONE:
        return 0
    if strategy.offload_param is Offload.NVME:
        return sizes.residual * min(2 * parameters.largest, parameters.total)
    return sizes.residual * min(parameters.total, _LIVE_ELEMENTS)


def span_weights(strategy: Strategy, shard: RankShard, gathered: int) -> int:
    """Bytes of the layers that are recomputed together: they stay until their backward.

    `partitioned_param_coordinator.py`, `fetch_sub_module`: what is there already costs nothing
    of what may be fetched ahead, so that all are marked as fetched for their next use. From
    NVMe nothing is fetched ahead.
    """
    span, sizes = strategy.checkpoint_interval, group_bytes(strategy)
    is_whole = strategy.checkpoint_scope is CheckpointScope.LAYER
    if not gathered or span < 2 or not is_whole or strategy.offload_param is Offload.NVME:
        return 0
    num_layers = max(1, shard.num_layers)
    span_elements = min(span, num_layers) * (shard.parameters.linears // num_layers)
    left = sizes.residual * shard.parameters.total - gathered
    return int(max(0, min(left, sizes.residual * span_elements)))


def gathered_beside(strategy: Strategy, shard: RankShard, num_ranks: int) -> int:
    """Bytes that may be gathered beyond `gathered_weights`, at most."""
    parameters, sizes = shard.parameters, group_bytes(strategy)
    if parameters.total <= _LIVE_ELEMENTS or strategy.offload_param is Offload.NVME:
        return 0
    if zero_size(strategy, num_ranks) == 1:
        has_any = strategy.offload_param is not Offload.NONE
        return sizes.residual * parameters.largest if has_any else 0
    # Of a layer: embeddings are read by themselves.
    largest = parameters.linears // max(1, shard.num_layers)
    return sizes.residual * (parameters.largest + min(largest, 2 * _PREFETCHED_ELEMENTS))
