"""Checks micro-batch, checkpoints and tiles against the global batch, the model and its blocks."""

from __future__ import annotations

from autotune.knob_values import CheckpointScope
from autotune.machine.hardware import Hardware
from autotune.machine.software import Software
from autotune.question.workload import Workload
from autotune.space.strategy import Strategy

__all__ = [
    "RESIDUAL_IN_BLOCKS",
    "WITHOUT_MLP_MODULE",
    "conflict_with_blocks",
    "conflict_with_sizes",
]

WITHOUT_MLP_MODULE = frozenset(("biogpt", "opt", "xglm"))
"""Architectures whose decoder layers hold the linear layers of the MLP themselves."""

RESIDUAL_IN_BLOCKS = frozenset(("bloom", "mpt"))
"""Architectures whose blocks take the residual beside their input."""


def conflict_with_sizes(
    strategy: Strategy, workload: Workload, hardware: Hardware, software: Software
) -> str | None:
    """Which knob exceeds the global batch, the layers or the tokens, in words; else None."""
    batch, ranks = workload.global_batch_size, hardware.num_devices
    if not strategy.gradient_accumulation_steps(batch, ranks):
        data = strategy.data_parallel_size(ranks)
        return (
            f"micro_batch_size {strategy.micro_batch_size} x {data} ranks does not divide "
            f"the global batch {batch}"
        )
    if strategy.checkpoint_interval > workload.model.num_hidden_layers:
        return (
            f"checkpoint_interval {strategy.checkpoint_interval} is more than the model's "
            f"{workload.model.num_hidden_layers} layers"
        )
    num_tokens = workload.seq_len // strategy.sequence_parallel_size
    for knob in ("mlp_tiles", "loss_tiles"):
        tiles = getattr(strategy, knob)
        if tiles > num_tokens:
            return f"{knob} {tiles} is more than the {num_tokens} tokens of a sample on one rank"
    return None


def conflict_with_blocks(
    strategy: Strategy, workload: Workload, hardware: Hardware, software: Software
) -> str | None:
    """Which knob needs blocks that the architecture does not have, in words; else None."""
    model = workload.model
    tiles, scope = strategy.mlp_tiles, strategy.checkpoint_scope
    needs_mlp = tiles > 1 or scope is CheckpointScope.MLP
    knob = f"mlp_tiles {tiles}" if tiles > 1 else f"checkpoint_scope {scope}"
    if needs_mlp and model.model_type in WITHOUT_MLP_MODULE:
        return f"{knob} needs an MLP of its own in every layer; {model.model_type} has none"
    needs_blocks = needs_mlp or scope is not CheckpointScope.LAYER
    if needs_blocks and model.model_type in RESIDUAL_IN_BLOCKS:
        return f"{knob} needs blocks of one input; those of {model.model_type} take the residual"
    if strategy.loss_tiles > 1 and model.config.get("output_router_logits"):
        return (
            f"loss_tiles {strategy.loss_tiles} needs output_router_logits false: the router's "
            "loss is that of all tokens together"
        )
    return None
