"""Compiles one of DeepSpeed's extensions: `python -m autotune.worker.extension BUILDER`.

A process of its own, in a rank's environment: what it leaves in torch's folder ranks find there.
"""

from __future__ import annotations

import importlib
import sys

__all__: list[str] = []


def main() -> None:
    """Compile and load the extension whose builder is named."""
    builders = importlib.import_module("deepspeed.ops.op_builder")
    getattr(builders, sys.argv[1])().load()


if __name__ == "__main__":
    main()
