"""Checks checkpoints and tiles of a layer's blocks against the architecture."""

from __future__ import annotations

from autotune.knob_values import CheckpointScope
from autotune.machine.hardware import Hardware
from autotune.machine.software import Software
from autotune.question.workload import Workload
from autotune.space.strategy import Strategy

__all__ = ["RESIDUAL_IN_BLOCKS", "WITHOUT_MLP_MODULE", "conflict"]

WITHOUT_MLP_MODULE = frozenset(("biogpt", "opt", "xglm"))
"""Architectures whose decoder layers hold the linear layers of the MLP themselves."""

RESIDUAL_IN_BLOCKS = frozenset(("bloom", "mpt"))
"""Architectures whose blocks take the residual beside their input."""


def conflict(
    strategy: Strategy, workload: Workload, hardware: Hardware, software: Software
) -> str | None:
    """Why the question does not allow these knobs, in words; None where it does."""
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
