"""Runs a training script in fresh processes, as a user does who has exported a strategy."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path


def printed_losses(folder: Path, *arguments: str, num_ranks: int = 2) -> list[float]:
    """What `train.py` in a folder prints behind LOSS, on CPU ranks.

    Args:
        folder: where it runs.
        arguments: of the script.
        num_ranks: processes of it.
    """
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(num_ranks), "-m", "plain_training", "train.py", *arguments),
        ],
        cwd=folder,
        env=os.environ
        | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return [float(line.split()[1]) for line in ran.stdout.splitlines() if "LOSS" in line]


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
