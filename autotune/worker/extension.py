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
    """End the compilers, and leave no lock that a later build would wait for."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()
    remove_abandoned_locks(dying=os.getpid())


if __name__ == "__main__":
    main()
