"""What is installed: package versions, a C++ compiler, optional kernels.

Looks at metadata and the PATH only, so nothing heavy is imported.
"""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec

__all__ = ["CORE_PACKAGES", "Software", "detect_software"]

CORE_PACKAGES = (
    "torch",
    "transformers",
    "deepspeed",
    "peft",
    "bitsandbytes",
    "optuna",
    "ray",
    "nvidia-ml-py",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Software:
    """What this Python environment can do."""

    versions: dict[str, str]
    """Version of each core package that is installed, and of Python."""
    has_liger: bool = False
    """Whether Liger's fused kernels are installed (the extra `liger`)."""
    has_compiler: bool = False
    """Whether DeepSpeed can compile its extensions: a C++ compiler and ninja."""


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def detect_software() -> Software:
    """Look at this environment."""
    found = {package: _version(package) for package in (*CORE_PACKAGES, "liger-kernel")}
    versions = {"python": platform.python_version()}
    versions |= {package: version for package, version in found.items() if version}
    return Software(
        versions=versions,
        has_liger=find_spec("liger_kernel") is not None,
        has_compiler=(shutil.which("c++") is not None and find_spec("ninja") is not None)
        or (shutil.which("g++") is not None and shutil.which("ninja") is not None),
    )
