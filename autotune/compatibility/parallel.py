"""Parallel degrees against the ranks, and the model's heads and layers."""

from __future__ import annotations

from autotune.hardware import Hardware
from autotune.software import Software
from autotune.strategy import Strategy
from autotune.workload import Workload

__all__ = ["conflict"]


def conflict(
    strategy: Strategy, workload: Workload, hardware: Hardware, software: Software
) -> str | None:
    """Why the question does not allow these knobs, in words; None where it does."""
    ranks, model = hardware.num_devices, workload.model
    if ranks % strategy.model_parallel_size:
        return (
            f"tensor x pipeline x sequence = {strategy.model_parallel_size} ranks does not divide "
            f"the {ranks} there are"
        )
    for knob in ("tensor_parallel_size", "sequence_parallel_size"):
        degree = getattr(strategy, knob)
        for name in ("num_attention_heads", "num_key_value_heads"):
            heads = getattr(model, name)
            if heads % degree:
                return f"{knob} {degree} does not divide {name} {heads} of {model.name}"
    if workload.seq_len % strategy.sequence_parallel_size:
        return (
            f"sequence_parallel_size {strategy.sequence_parallel_size} does not divide "
            f"--seq-len {workload.seq_len}"
        )
    if strategy.pipeline_parallel_size > model.num_hidden_layers:
        return (
            f"pipeline_parallel_size {strategy.pipeline_parallel_size} is more than the "
            f"{model.num_hidden_layers} layers of {model.name}"
        )
    return None
