"""How the layers of a model are divided over the stages of a pipeline."""

from __future__ import annotations

import pytest

from autotune.question.stages import divide_layers


@pytest.mark.parametrize("num_layers", [4, 5, 22, 80])
@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
def test_each_layer_is_in_one_stage_and_each_stage_has_one(
    num_layers: int, num_stages: int
) -> None:
    stages = divide_layers(num_layers, num_stages, before=2.5, after=7.0)
    assert [layer for stage in stages for layer in stage] == list(range(num_layers))
    assert all(len(stage) > 0 for stage in stages)


def test_without_embedding_and_head_the_stages_are_as_long_as_each_other() -> None:
    assert [len(stage) for stage in divide_layers(8, 4)] == [2, 2, 2, 2]


def test_the_layer_that_is_over_goes_to_the_last_stage() -> None:
    assert [len(stage) for stage in divide_layers(5, 2)] == [2, 3]


def test_stages_with_embedding_and_head_hold_fewer_layers() -> None:
    # Llama-3.2-3B: embedding and head are 394 million parameters each, a layer 101 million.
    sizes = [len(stage) for stage in divide_layers(28, 4, before=3.9, after=3.9)]
    assert sizes == [5, 9, 9, 5]
