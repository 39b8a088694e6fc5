"""Weights that ZeRO-3 gathers: which are there when, and how much room they take."""

from __future__ import annotations

import pytest

from autotune.predictor.reserved.allocator import Allocator
from autotune.predictor.reserved.gathered_weights import GatheredWeights

MILLION = 1_000_000
NUM_LAYERS = 40
ELEMENTS = 40 * MILLION


def model(elements: int = ELEMENTS) -> tuple[GatheredWeights, Allocator]:
    allocator = Allocator()
    weights = GatheredWeights(allocator, [elements] * NUM_LAYERS, 2, free=allocator.free)
    return weights, allocator


def pass_once(weights: GatheredWeights) -> None:
    """Forward and backward of layers with one weight each."""
    weights.begin_forward()
    for layers in (range(NUM_LAYERS), reversed(range(NUM_LAYERS))):
        for layer in layers:
            weights.fetch((layer,))
            weights.release((layer,))


def test_at_first_one_module_at_a_time_has_its_weights() -> None:
    weights, allocator = model()
    pass_once(weights)
    assert allocator.peak_allocated_bytes == pytest.approx(2 * ELEMENTS, rel=0.01)


def test_once_the_order_is_known_a_billion_elements_are_there() -> None:
    weights, allocator = model()
    for _ in range(2):
        pass_once(weights)
    # The limit may be passed by what is gathered at once, and by its flat buffer.
    assert 2e9 <= allocator.peak_allocated_bytes <= 2e9 + 3 * 2 * 2 * ELEMENTS


def test_before_the_step_all_weights_are_given_back() -> None:
    weights, allocator = model()
    for _ in range(3):
        pass_once(weights)
        weights.release_all()
    assert allocator._device.allocated == 0


def test_small_weights_always_stay_and_are_not_counted() -> None:
    weights, allocator = model(elements=100_000)
    pass_once(weights)
    assert allocator.peak_allocated_bytes == 0
