"""Runs the recorded studies on one GPU and keeps what belongs into `results/`.

    python tests/benchmarks/gpu_studies.py STUDY FOLDER

STUDY is one of the names below, FOLDER an existing folder to put the record into. A study that
stands in FOLDER already goes on from there. On the CPU a tiny model takes the place of the others.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from autotune.machine.hardware import DeviceType, detect_hardware

STUDIES = {
    "1.1B-full-8m": (
        *("--model", "1.1B", "--seq-len", "1024", "--global-batch", "128", "--budget", "8m"),
    ),
    "13B-lora-10m": (
        *("--model", "13B", "--method", "lora", "--seq-len", "1024", "--global-batch", "16"),
        *("--budget", "10m"),
    ),
}
ON_CPU = ("--model", "tiny", "--seq-len", "64", "--budget", "30s")

LOGS = ("lock", "server.log", "trials/*/rendezvous", "trials/*/*.out", "trials/*/*.err")
"""What names the paths of the machine, or says nothing any more."""


def main(name: str, folder: Path) -> int:
    """Search in the folder itself, then take the logs out; the search's exit status."""
    is_cuda = detect_hardware().device_type is DeviceType.CUDA
    command = ["autotune", "search", *(STUDIES[name] if is_cuda else ON_CPU), "--out", name]
    print("$", *command, flush=True)
    with (folder / f"{name}.progress.txt").open("a") as progress:
        ran = subprocess.run(
            [sys.executable, "-m", *command], cwd=folder, stderr=progress, check=False
        )
    for pattern in LOGS:
        for log in (folder / name).glob(pattern):
            log.unlink()
    return ran.returncode


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in STUDIES:
        sys.exit(f"usage: gpu_studies.py {{{','.join(STUDIES)}}} FOLDER")
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
