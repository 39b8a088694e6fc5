"""Time of collectives between the devices of this host, by their size.

    NCCL_NVLS_ENABLE=0 python tests/benchmarks/link_rates.py OUT.jsonl

A line for each collective and size: bytes of the whole tensor, seconds, and the bytes a second
that pass each link of a ring, by which an all-reduce moves 2 (n - 1) / n of the tensor, an
all-gather and a reduce-scatter half of that. Without GPUs two CPU ranks talk over gloo, to try
the script.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist

from autotune.doctor.measure.links import meet
from autotune.doctor.measure.timing import synchronize
from autotune.launch.rank_environment import rank_environment
from autotune.machine.hardware import DeviceType, Hardware, detect_hardware

SIZES = tuple(4**power for power in range(5, 16))
"""Bytes: 1 KiB to 1 GiB."""

SIZES_ON_CPU = SIZES[:8]
_NUM_ROUNDS = 3
_LEAST_S = 0.05


def main() -> None:
    """Start the ranks, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    hardware = detect_hardware()
    if arguments.rank is None:
        start(hardware, arguments.out)
    else:
        measure(hardware, arguments.rank, arguments.folder, arguments.out)


def start(hardware: Hardware, out: Path) -> None:
    """One process a device, and the end of all of them."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, str(out), "--folder", folder, "--rank"]
        ranks = [
            subprocess.Popen([*command, str(rank)], env=rank_environment(hardware))
            for rank in range(hardware.num_devices)
        ]
        if any([rank.wait() for rank in ranks]):
            sys.exit("a rank failed")


def measure(hardware: Hardware, rank: int, folder: Path, out: Path) -> None:
    """As one rank; the first writes."""
    is_cuda = hardware.device_type is DeviceType.CUDA
    num_ranks = hardware.num_devices
    device = torch.device("cuda", rank) if is_cuda else torch.device("cpu")
    if is_cuda:
        torch.cuda.set_device(device)
    meet(folder, rank=rank, num_ranks=num_ranks, device=device)
    for size in SIZES if is_cuda else SIZES_ON_CPU:
        for name, work, share in collectives(size, num_ranks, device):
            seconds = seconds_of(work, device)
            line = {
                "collective": name,
                "bytes": size,
                "seconds": seconds,
                "link_bytes_per_s": share * (num_ranks - 1) / num_ranks * size / seconds,
                "num_ranks": num_ranks,
                "device_kind": hardware.device_kind,
            }
            if rank == 0:
                print(
                    f"{name:14} {size:>12,} B {1e6 * seconds:10,.1f} µs "
                    f"{line['link_bytes_per_s'] / 1e9:8.2f} GB/s",
                    flush=True,
                )
                with out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
    dist.destroy_process_group()


def collectives(
    size: int, num_ranks: int, device: torch.device
) -> list[tuple[str, Callable[[], object], int]]:
    """Name, work, and how often each byte passes a link, in units of (n - 1) / n."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    whole = torch.zeros(
        size // dtype.itemsize // num_ranks * num_ranks, dtype=dtype, device=device
    )
    part = whole[: len(whole) // num_ranks].clone()
    found: list[tuple[str, Callable[[], object], int]] = [
        ("all-reduce", lambda: dist.all_reduce(whole), 2),
        ("all-gather", lambda: dist.all_gather_into_tensor(whole, part), 1),
    ]
    if device.type == "cuda":  # gloo has no reduce-scatter of one tensor
        found.append(("reduce-scatter", lambda: dist.reduce_scatter_tensor(part, whole), 1))
    return found


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Of one call among many in a row: the median of three rounds, of as many on every rank."""
    for _ in range(3):
        work()
    num = torch.tensor([max(3, int(_LEAST_S / max(_round_s(work, device, 3), 1e-6)))])
    num = num.to(device)
    dist.all_reduce(num, dist.ReduceOp.MAX)
    num_calls = min(2000, int(num.item()))
    return median(_round_s(work, device, num_calls) for _ in range(_NUM_ROUNDS))


def _round_s(work: Callable[[], object], device: torch.device, num_calls: int) -> float:
    synchronize(device)
    dist.barrier()
    synchronize(device)
    started = time.perf_counter()
    for _ in range(num_calls):
        work()
    synchronize(device)
    return (time.perf_counter() - started) / num_calls


if __name__ == "__main__":
    main()
