"""Times a piece of work on a device of any kind."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

__all__ = ["seconds_of", "synchronize"]

_LEAST_S = 0.2
"""A round is made so long that a clock's grain and one interruption do not matter."""

_NUM_ROUNDS = 3
_MOST_CALLS = 100_000


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given; the CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, of many in a row: the median of three rounds.

    The calls of a round are given to the device without a pause, so of work that takes it longer
    than the host takes to give it, this is the device's time, and otherwise the host's.
    """
    _round_s(work, device, 1)
    num_calls, seconds = 1, _round_s(work, device, 1)
    while seconds < _LEAST_S / 2 and num_calls < _MOST_CALLS:
        num_calls = min(_MOST_CALLS, 8 * num_calls)
        seconds = _round_s(work, device, num_calls)
    num_calls = max(1, min(_MOST_CALLS, round(num_calls * _LEAST_S / max(seconds, 1e-9))))
    return median(_round_s(work, device, num_calls) for _ in range(_NUM_ROUNDS)) / num_calls


def _round_s(work: Callable[[], object], device: torch.device, num_calls: int) -> float:
    synchronize(device)
    started = time.perf_counter()
    for _ in range(num_calls):
        work()
    synchronize(device)
    return time.perf_counter() - started
