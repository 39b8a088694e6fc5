"""Checks micro-batch, checkpoints and tiles against the global batch and the model's sizes."""

from __future__ import annotations

from autotune.machine.hardware import Hardware
from autotune.machine.software import Software
from autotune.question.workload import Workload
from autotune.space.strategy import Strategy

__all__ = ["conflict"]


def conflict(
    strategy: Strategy, workload: Workload, hardware: Hardware, software: Software
) -> str | None:
    """Why the question does not allow these knobs, in words; None where it does."""
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
