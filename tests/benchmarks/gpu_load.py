"""Whether the work of others on a GPU is told from our own: real processes, the real NVML.

    python tests/benchmarks/gpu_load.py [--seconds 10]

Watches the first GPU while nothing runs, while a process of ours multiplies matrices, and while
one that is not below this one does so too. The second must show nothing of others, the third a
share and some GiB; "not told apart" says that NVML shows other process numbers than this process
sees, as in a container, and that the reading before the first trial stands in.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from autotune.machine.gpu_load import GpuLoadMeter
from autotune.machine.hardware import GIB

_WORK = """
import sys, time, torch
matrix = torch.randn(8192, 8192, device="cuda")
end = time.monotonic() + float(sys.argv[-1])
while time.monotonic() < end:
    matrix @ matrix
    torch.cuda.synchronize()
"""

_ORPHAN = (
    "import subprocess, sys; "
    "subprocess.Popen([sys.executable, '-c', *sys.argv[1:]], start_new_session=True)"
)


def watch(seconds: float) -> str:
    """What a meter says after so long."""
    meter = GpuLoadMeter(slice(1))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        meter.look()
        time.sleep(0.1)
    found = meter.of_others()
    if found is None:
        return "not told apart"
    return f"others: {found.share:.0%} of the time, {found.memory_bytes / GIB:.2f} GiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    seconds = parser.parse_args().seconds
    print("nothing runs:", watch(seconds / 2), flush=True)
    # Long enough for the import of torch, and for both readings.
    work = [_WORK, str(2 * seconds + 20)]
    with subprocess.Popen([sys.executable, "-c", *work]) as own:
        time.sleep(10)
        print("one of ours:", watch(seconds), flush=True)
        subprocess.run([sys.executable, "-c", _ORPHAN, *work], check=True)
        time.sleep(10)
        print("and one of others:", watch(seconds / 2), flush=True)
        own.terminate()


if __name__ == "__main__":
    main()
