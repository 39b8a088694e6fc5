"""The allocator against what PyTorch's did: recorded allocations of trials on one H100."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autotune.predictor.reserved.allocator import Allocator

MIB = 2**20
RECORDED = Path(__file__).parent / "allocations"


def replay(record: dict[str, Any]) -> Allocator:
    """Events: a size in units of 512 bytes, or -1 - the number of the allocation that is freed."""
    allocator, addresses = Allocator(), []
    for event in record["events"]:
        if event >= 0:
            addresses.append(allocator.allocate(512 * event))
        else:
            allocator.free(addresses[-1 - event])
    return allocator


@pytest.mark.parametrize("path", sorted(RECORDED.glob("*.json")), ids=lambda path: path.stem)
def test_recorded_allocations_take_the_measured_memory(path: Path) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    # Only blocks above 1 MiB are recorded.
    assert replay(record).peak_reserved_bytes == pytest.approx(
        record["peak_reserved_bytes"], rel=0.01
    )


def test_the_smallest_block_that_is_large_enough_is_taken() -> None:
    allocator = Allocator()
    large, _, small, _ = (allocator.allocate(size * MIB) for size in (30, 2, 20, 2))
    allocator.free(large)
    allocator.free(small)
    assert allocator.allocate(15 * MIB) == small


def test_a_block_at_the_end_is_taken_last() -> None:
    allocator = Allocator()
    hole, _, last = (allocator.allocate(size * MIB) for size in (30, 2, 20))
    allocator.free(hole)
    allocator.free(last)
    assert allocator.allocate(15 * MIB) == hole


def test_free_neighbours_become_one_block() -> None:
    allocator = Allocator()
    blocks = [allocator.allocate(10 * MIB) for _ in range(4)]
    for place in (0, 2, 1):
        allocator.free(blocks[place])
    assert allocator.allocate(30 * MIB) == blocks[0]


def test_what_no_hole_is_large_enough_for_takes_more_memory() -> None:
    allocator = Allocator()
    blocks = [allocator.allocate(40 * MIB) for _ in range(3)]
    allocator.free(blocks[0])
    allocator.allocate(60 * MIB)
    assert allocator.peak_allocated_bytes == 140 * MIB
    assert allocator.peak_reserved_bytes == 180 * MIB


def test_a_full_device_maps_free_pages_at_another_place() -> None:
    allocator = Allocator(capacity_bytes=160 * MIB)
    hole, _ = allocator.allocate(80 * MIB), allocator.allocate(60 * MIB)
    allocator.free(hole)
    allocator.allocate(100 * MIB)
    assert allocator.num_retries == 1
    assert allocator.peak_reserved_bytes == 160 * MIB


def test_small_blocks_are_counted_apart() -> None:
    allocator = Allocator()
    blocks = [allocator.allocate(MIB) for _ in range(3)]
    assert allocator.peak_reserved_bytes == 4 * MIB
    for block in blocks:
        allocator.free(block)
    assert allocator.allocate(2 * MIB) == 0


def test_a_stream_does_not_take_what_another_has_freed() -> None:
    allocator = Allocator()
    beside = Allocator(beside=allocator)
    allocator.free(allocator.allocate(40 * MIB))
    beside.free(beside.allocate(40 * MIB))
    assert allocator.peak_reserved_bytes == 80 * MIB
    assert allocator.peak_allocated_bytes == 40 * MIB


def test_streams_share_what_a_device_has() -> None:
    allocator = Allocator(100 * MIB)
    beside = Allocator(beside=allocator)
    allocator.free(allocator.allocate(80 * MIB))
    beside.allocate(60 * MIB)
    assert allocator.num_retries == 1
    assert allocator.peak_reserved_bytes == 80 * MIB


def test_the_peak_says_when_it_was_and_what_was_live() -> None:
    allocator = Allocator()
    allocator.moment = "before"
    first = allocator.allocate(100 * MIB, "weights")
    allocator.moment = "then"
    second = allocator.allocate(60 * MIB, "activations")
    allocator.becomes(second, "gradients")
    allocator.allocate(60 * MIB, "states")
    allocator.free(first)
    allocator.moment = "later"
    allocator.allocate(80 * MIB, "activations")

    assert allocator.peak_moment == "then"
    live = {part: size for part, size in allocator.peak_parts.items() if size}
    assert live == {"weights": 100 * MIB, "gradients": 60 * MIB, "states": 60 * MIB}
