"""Compiles one of DeepSpeed's extensions: `python -m autotune.worker.extension BUILDER`.

A process of its own, in a rank's environment: what it leaves in torch's folder ranks find there.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys

from autotune.lifeline import end_group_with_input
from autotune.machine.extensions import remove_abandoned_locks

__all__: list[str] = []


def main() -> None:
    """Compile and load the extension whose builder is named."""
    end_group_with_input(_clean_up)
    builders = importlib.import_module("deepspeed.ops.op_builder")
    getattr(builders, sys.argv[1])().load()


def _clean_up() -> None:
    """Leave no lock that a later build would wait for, and end the compilers."""
    import psutil

    # First: this process ends by itself once they have ended.
    remove_abandoned_locks(dying=os.getpid())
    compilers = psutil.Process().children(recursive=True)
    for compiler in compilers:
        with contextlib.suppress(psutil.Error):
            # It removes its temporary files, which it would not if it were killed.
            compiler.terminate()
    for compiler in psutil.wait_procs(compilers, timeout=1.0)[1]:
        with contextlib.suppress(psutil.Error):
            compiler.kill()


if __name__ == "__main__":
    main()
