"""The samples that a trial trains on: random tokens, the longest sample in every row.

The k-th token comes with a probability of about 1/k, as words do (Zipf's law), so there is
something to learn, and a strategy that computes wrong gradients shows in the losses.
"""

from __future__ import annotations

import torch

from autotune.trials.trial import TrialSpec

__all__ = ["micro_batch"]


def micro_batch(spec: TrialSpec, *, data_rank: int, step: int, micro: int) -> torch.Tensor:
    """Token ids of one micro-batch of one rank, [micro_batch_size, seq_len].

    A sample's tokens follow from its place in the global batch, so an optimizer step sees the
    same samples however they are divided into micro-batches and ranks.

    Args:
        spec: what is trained.
        data_rank: which of the data-parallel groups this rank belongs to.
        step: which optimizer step.
        micro: which micro-batch of the step.
    """
    workload, size = spec.workload, spec.strategy.micro_batch_size
    num_groups = spec.strategy.data_parallel_size(spec.num_ranks)
    first = (micro * num_groups + data_rank) * size + step * workload.global_batch_size
    rows = []
    for sample in range(first, first + size):
        generator = torch.Generator().manual_seed(spec.seed * 1_000_003 + sample)
        uniform = torch.rand(workload.seq_len, generator=generator, dtype=torch.float64)
        rows.append((workload.model.vocab_size**uniform).long() - 1)
    return torch.stack(rows)
