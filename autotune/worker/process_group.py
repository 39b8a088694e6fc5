"""How the ranks of one trial meet, and which device each of them uses."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from autotune.machine.hardware import DeviceType

__all__ = ["join"]


def join(folder: Path, *, rank: int, num_ranks: int, device_type: DeviceType) -> torch.device:
    """Choose this rank's device and meet the others.

    On one host they meet through a file, and nothing listens for it; ranks of several hosts meet
    at the address in AUTOTUNE_RENDEZVOUS, where rank 0 listens.

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
            init_method=os.environ.get("AUTOTUNE_RENDEZVOUS")
            or f"file://{folder.resolve() / 'rendezvous'}",
            rank=rank,
            world_size=num_ranks,
            timeout=timedelta(minutes=10),
            device_id=device if is_cuda else None,
        )
    except RuntimeError as error:
        # gloo's own errors have no type of theirs.
        raise dist.DistNetworkError(str(error)) from error
    deepspeed.init_distributed(verbose=False)
    return device
