"""Connects the ranks of one trial, and gives each its device."""

from __future__ import annotations

import functools
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from autotune.machine.hardware import DeviceType

__all__ = ["join", "join_when_asked"]

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
    device = _chosen_device(device_type)
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


def join_when_asked(
    folder: Path, *, rank: int, num_ranks: int, device_type: DeviceType
) -> torch.device:
    """Choose this rank's device, and have it meet the others when its program asks for that.

    The program's own `init_process_group` keeps its backend; where the ranks meet is as in `join`,
    so that nothing listens on one host.

    Args:
        folder: the trial's folder; the ranks meet through a file in it.
        rank: which rank this process is.
        num_ranks: how many there are.
        device_type: where tensors live.
    """
    is_cuda = device_type is DeviceType.CUDA
    device = _chosen_device(device_type)
    original = dist.init_process_group

    @functools.wraps(original)
    def init(backend: str | None = None, *_: Any, **kwargs: Any) -> None:
        kept = {name: kwargs[name] for name in ("timeout", "pg_options") if name in kwargs}
        original(
            # torch's own choice asks for a device that CPU ranks do not have.
            backend=backend or ("nccl" if is_cuda else "gloo"),
            store=_store(folder, rank, num_ranks),
            rank=rank,
            world_size=num_ranks,
            device_id=device if is_cuda else None,
            **kept,
        )

    dist.init_process_group = init
    torch.distributed.distributed_c10d.init_process_group = init
    return device


def _chosen_device(device_type: DeviceType) -> torch.device:
    """This rank's device, which is the current one from here on."""
    if device_type is not DeviceType.CUDA:
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
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
