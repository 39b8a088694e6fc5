"""The coordinates of each rank: its data, tensor, sequence and pipeline group.

The layout is DeepSpeed's own. Ranks that divide one matrix product or one sample have neighbouring
numbers: AutoTP makes a mesh of (data, tensor) and Ulysses takes consecutive ranks, so both are the
fastest-running coordinate. They never come together, so which of them runs faster is open here.
The stages of a pipeline are the slowest: `PipeDataParallelTopology` has the axes (pipe, data), so
the first stage holds the first ranks of all. From slow to fast:

    rank = ((pipeline * num_data + data) * num_sequence + sequence) * num_tensor + tensor

Ranks with the same `data` coordinate train on the same samples. Knows no process groups: those are
DeepSpeed's (`deepspeed.utils.groups`, `parallel_state_sp`, a pipeline's grid).
"""

from __future__ import annotations

from dataclasses import dataclass

from autotune.space.strategy import Strategy

__all__ = ["ParallelCoordinates", "parallel_coordinates"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelCoordinates:
    """One rank's coordinate in each direction, counted from 0."""

    pipeline: int
    """Which stage of layers it computes."""
    data: int
    """Which samples it trains on."""
    sequence: int
    """Which part of their tokens it holds."""
    tensor: int
    """Which part of each matrix product it computes."""


def parallel_coordinates(strategy: Strategy, *, rank: int, num_ranks: int) -> ParallelCoordinates:
    """The coordinates of `rank` among `num_ranks`."""
    num_data = strategy.data_parallel_size(num_ranks)
    assert num_data, "the ranks cannot be divided so"
    rest, tensor = divmod(rank, strategy.tensor_parallel_size)
    rest, sequence = divmod(rest, strategy.sequence_parallel_size)
    pipeline, data = divmod(rest, num_data)
    return ParallelCoordinates(pipeline=pipeline, data=data, sequence=sequence, tensor=tensor)
