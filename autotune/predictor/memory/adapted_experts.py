"""The weights of routed experts with adapters, which forward makes anew and keeps for backward.

PEFT adds the product of the adapters to the weights of all experts of a layer
(`lora/layer.py`, `ParamWrapper`). The sum is kept, and backward makes its gradient, whatever the
number of tokens. Held against a trace in `tests/predictor/memory/test_adapted_experts.py`.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.knob_values import CheckpointScope
from autotune.predictor.memory.activations import TokenBytes
from autotune.predictor.memory.micro_batch import longest_tokens
from autotune.predictor.memory.precision import group_bytes
from autotune.question.workload import Workload
from autotune.space.strategy import Strategy

__all__ = ["adapted_bytes", "with_adapted_experts"]


def adapted_bytes(workload: Workload, strategy: Strategy) -> int:
    """Bytes of the adapted weights of one mean layer; 0 where experts have no adapters."""
    model = workload.model
    if not model.expert_parameters or not strategy.lora_rank:
        return 0
    if not model.num_expert_adapters(1, workload.adapter_targets(strategy.lora_targets)):
        return 0
    return group_bytes(strategy).mlp * model.expert_parameters // model.num_hidden_layers


def with_adapted_experts(
    token: TokenBytes, workload: Workload, strategy: Strategy, *, num_traced: int
) -> TokenBytes:
    """A token that carries its share of the adapted weights.

    Args:
        token: as traced or counted.
        workload: what is trained.
        strategy: how.
        num_traced: tokens over which the trace spread the weights; 0 if `token` has none of them.
    """
    size = adapted_bytes(workload, strategy)
    if not size:
        return token
    tiles = strategy.mlp_tiles
    share = size / longest_tokens(workload, strategy)
    traced = size / num_traced if num_traced else 0.0
    is_repeated = tiles > 1 or strategy.checkpoint_scope is CheckpointScope.MLP
    if is_repeated:
        # Each tile makes the weights of all experts.
        recomputed = token.recomputed + share - traced / tiles
        return replace(
            token,
            recomputed=round(recomputed),
            layer_backward=round(token.layer_backward + share),
        )
    return replace(
        token,
        layer=round(token.layer + share - traced),
        layer_backward=round(token.layer_backward + share),
    )
