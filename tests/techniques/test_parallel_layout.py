"""Which rank has which share of the work."""

from __future__ import annotations

import pytest
from deepspeed.runtime.pipe.topology import PipeDataParallelTopology

from autotune.space.strategy import Strategy
from autotune.techniques.parallel_layout import parallel_coordinates


@pytest.mark.parametrize("direction", ["tensor", "sequence"])
def test_ranks_that_share_samples_are_neighbours(direction: str) -> None:
    strategy = Strategy.from_dict({f"{direction}_parallel_size": 2})
    places = [parallel_coordinates(strategy, rank=rank, num_ranks=6) for rank in range(6)]
    assert [place.data for place in places] == [0, 0, 1, 1, 2, 2]
    assert [getattr(place, direction) for place in places] == [0, 1, 0, 1, 0, 1]


def test_stages_are_where_deepspeeds_topology_has_them() -> None:
    topology = PipeDataParallelTopology(num_pp=3, num_dp=2)
    strategy = Strategy(pipeline_parallel_size=3)
    for rank in range(6):
        place, expected = (
            parallel_coordinates(strategy, rank=rank, num_ranks=6),
            topology.get_coord(rank),
        )
        assert (place.pipeline, place.data) == (expected.pipe, expected.data)


def test_without_parallel_degrees_every_rank_has_samples_of_its_own() -> None:
    places = [parallel_coordinates(Strategy(), rank=rank, num_ranks=3) for rank in range(3)]
    assert [place.data for place in places] == [0, 1, 2]
