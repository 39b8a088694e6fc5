"""Connects the ranks of one trial, and gives each its device."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from autotune.machine.hardware import DeviceType

__all__ = ["join"]

_TIMEOUT = timedelta(minutes=10)


def join(folder: Path, *, rank: int, num_ranks: int, device_type: DeviceType) -> torch.device:
    """Choose this rank's device and meet the others.

    On one host they meet through a file, and nothing listens for it; ranks of several hosts, whose
    environment has an AUTOTUNE_RENDEZVOUS, meet at MASTER_ADDR and MASTER_PORT, where rank 0
    listens. No URL is made of either: the folder's name may have any character.

    Args:
        folder: the trial's folder; the file lies in it.
        rank: which rank this process is.
        num_ranks: how many there are.
        device_type: where tensors live.

    Raises:
        torch.distributed.DistError: they did not meet.
    """
    import deepspeed

    is_cuda = device_type is DeviceType.CUDA
    device = (
        torch.device("cuda", int(os.environ["LOCAL_RANK"])) if is_cuda else torch.device("cpu")
    )
    if is_cuda:
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(
            backend="nccl" if is_cuda else "gloo",
            store=_store(folder, rank, num_ranks),
            rank=rank,
            world_size=num_ranks,
            timeout=_TIMEOUT,
            device_id=device if is_cuda else None,
        )
    except RuntimeError as error:
        # gloo's own errors have no type of theirs.
        raise dist.DistNetworkError(str(error)) from error
    deepspeed.init_distributed(verbose=False)
    return device


def _store(folder: Path, rank: int, num_ranks: int) -> Any:
    """Where the ranks leave word for each other."""
    if "AUTOTUNE_RENDEZVOUS" not in os.environ:
        file = str(folder.resolve() / "rendezvous")
        return dist.FileStore(file, num_ranks)  # type: ignore[attr-defined]
    return dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        num_ranks,
        is_master=rank == 0,
        timeout=_TIMEOUT,
    )
