"""Rates of the links between the ranks of one host, by all-reduces of all of them."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist

from autotune.doctor.measure.timing import synchronize

__all__ = ["all_reduce_s", "link_bytes_per_s", "meet"]

_REDUCED_BYTES = 64 * 2**20
_NUM_LARGE = {"cuda": 20, "cpu": 5}
_NUM_SMALL = {"cuda": 200, "cpu": 50}
_NUM_ROUNDS = 3
_TIMEOUT_S = 60


def meet(folder: Path, *, rank: int, num_ranks: int, device: torch.device) -> None:
    """Wait for the other ranks at a file in the folder: nothing listens for them."""
    is_cuda = device.type == "cuda"
    dist.init_process_group(
        backend="nccl" if is_cuda else "gloo",
        store=dist.FileStore(  # type: ignore[attr-defined]
            str(folder.resolve() / "rendezvous"), num_ranks
        ),
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(seconds=_TIMEOUT_S),
        device_id=device if is_cuda else None,
    )


def all_reduce_s(device: torch.device) -> float:
    """Seconds of an all-reduce of one number: the latency of a collective."""
    return _seconds(torch.zeros(1, device=device), _NUM_SMALL[device.type])


def link_bytes_per_s(device: torch.device, all_reduce_s: float) -> float:
    """Bytes per second of an all-reduce of 64 MiB in fp32.

    Of n ranks in a ring, 2 (n - 1) / n of them pass each link.

    Patarasuk and Yuan, Bandwidth optimal all-reduce (JPDC 69(2), 2009).

    Args:
        device: this rank's.
        all_reduce_s: what of it is no transfer.
    """
    num_ranks = dist.get_world_size()
    tensor = torch.zeros(_REDUCED_BYTES // 4, device=device)
    seconds = _seconds(tensor, _NUM_LARGE[device.type])
    passing = 2 * (num_ranks - 1) / num_ranks * _REDUCED_BYTES
    return passing / max(seconds - all_reduce_s, 0.1 * seconds)


def _seconds(tensor: torch.Tensor, num_calls: int) -> float:
    """Seconds of one all-reduce; every rank runs equally many, since each waits for the others."""
    dist.all_reduce(tensor)
    rounds = []
    for _ in range(_NUM_ROUNDS):
        synchronize(tensor.device)
        dist.barrier()
        started = time.perf_counter()
        for _ in range(num_calls):
            dist.all_reduce(tensor)
        synchronize(tensor.device)
        rounds.append((time.perf_counter() - started) / num_calls)
    return median(rounds)
