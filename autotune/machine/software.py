"""The software that is installed: package versions, a C++ compiler, optional kernels.

Looks at metadata and the PATH only, so nothing heavy is imported.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec

from autotune.machine.extensions import cuda_toolkit, libaio_header

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


_CXX = "clang++" if sys.platform == "darwin" else "g++"
"""The C++ compiler that torch.compile calls where CXX names none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Software:
    """What this Python environment can do."""

    versions: dict[str, str]
    """Version of each core package that is installed, and of Python."""
    has_liger: bool = False
    """Whether Liger's fused kernels are installed (the extra `liger`)."""
    has_compiler: bool = False
    """Whether DeepSpeed can compile its extensions: a C++ compiler and ninja."""
    has_async_io: bool = False
    """Whether it can compile its asynchronous I/O, for NVMe: libaio besides."""
    has_cuda_toolkit: bool = False
    """Whether it can compile CUDA kernels: nvcc besides."""
    has_flash_attention: bool = False
    """Whether FlashAttention 2 is installed (the package `flash-attn`)."""
    has_cpu_inductor: bool = False
    """Whether torch.compile can make code for CPUs: a C++ compiler."""
    has_gpu_inductor: bool = False
    """Whether torch.compile can make code for GPUs: Triton, and the C compiler that it calls."""


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _has_program(*names: str) -> bool:
    return any(shutil.which(name) is not None for name in names)


def detect_software() -> Software:
    """Look at this environment."""
    found = {package: _version(package) for package in (*CORE_PACKAGES, "liger-kernel")}
    versions = {"python": platform.python_version()}
    versions |= {package: version for package, version in found.items() if version}
    has_compiler = (shutil.which("c++") is not None and find_spec("ninja") is not None) or (
        shutil.which("g++") is not None and shutil.which("ninja") is not None
    )
    return Software(
        versions=versions,
        has_liger=find_spec("liger_kernel") is not None,
        has_compiler=has_compiler,
        has_async_io=has_compiler and libaio_header() is not None,
        has_cuda_toolkit=cuda_toolkit() is not None,
        has_flash_attention=_version("flash-attn") is not None,
        has_cpu_inductor=_has_program(os.environ.get("CXX", _CXX)),
        has_gpu_inductor=find_spec("triton") is not None and _has_program("gcc", "cc", "clang"),
    )
