"""Runs a training script in fresh processes, as a user does who has exported a strategy."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from torch.distributed import TCPStore


def printed_losses(folder: Path, *arguments: str, num_ranks: int = 2) -> list[float]:
    """What `train.py` in a folder prints behind LOSS, on CPU ranks.

    Args:
        folder: where it runs.
        arguments: of the script.
        num_ranks: processes of it.
    """
    # As torchrun has its ranks meet, without a third process that imports torch.
    meeting = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = [_start(folder, arguments, rank, num_ranks, meeting.port) for rank in range(num_ranks)]
    try:
        streams = [rank.communicate(timeout=240) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(e[-3000:] for _, e in streams)
    lines = [line for out, _ in streams for line in out.splitlines()]
    return [float(line.split()[1]) for line in lines if "LOSS" in line]


def _start(
    folder: Path, arguments: Sequence[str], rank: int, num_ranks: int, port: int
) -> subprocess.Popen[str]:
    """One rank of the script."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks}
    places |= {"LOCAL_WORLD_SIZE": num_ranks, "MASTER_PORT": port}
    return subprocess.Popen(
        [sys.executable, "-m", "plain_training", "train.py", *arguments],
        cwd=folder,
        env=os.environ
        | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        | {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
        | {name: str(value) for name, value in places.items()}
        | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def main() -> None:
    """One rank: the script as it is, without DeepSpeed's own collectives.

    They need a minute's compilation, and trials go through gloo as well.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
