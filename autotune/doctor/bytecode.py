"""Whether Python keeps its bytecode: without it each search compiles its libraries anew."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.util import cache_from_source, find_spec
from pathlib import Path

from autotune.doctor.check import Check
from autotune.doctor.machine import nearest_existing

__all__ = ["examine_bytecode"]

_LARGE_PACKAGES = ("torch", "transformers", "deepspeed")


def examine_bytecode() -> Check:
    """Looks for the bytecode of the largest packages; imports none of them."""
    name = "bytecode"
    lacking = {package: path for package, path in _bytecode_files() if not path.exists()}
    if not lacking:
        return Check.ok(name, "the bytecode of the libraries is stored")
    detail = f"the bytecode of {', '.join(lacking)} is not stored; each search compiles it again"
    if sys.dont_write_bytecode:
        return Check.warning(
            name,
            f"{detail}, because PYTHONDONTWRITEBYTECODE is set",
            "type: unset PYTHONDONTWRITEBYTECODE",
        )
    if not all(map(_can_be_made, lacking.values())):
        return Check.warning(
            name,
            f"{detail}, because its folder is not writable",
            "type: export PYTHONPYCACHEPREFIX=$HOME/.cache/python",
        )
    return Check.ok(name, f"the first search stores the bytecode of {', '.join(lacking)}")


def _bytecode_files() -> Iterator[tuple[str, Path]]:
    """The bytecode file of each installed package."""
    for package in _LARGE_PACKAGES:
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            yield package, Path(cache_from_source(spec.origin))


def _can_be_made(path: Path) -> bool:
    return os.access(nearest_existing(path.parent), os.W_OK | os.X_OK)
