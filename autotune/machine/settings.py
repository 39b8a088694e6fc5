"""Environment settings of a process that change how fast it trains or how much memory it holds.

The ranks of a trial write down what they had of it, and an export sets the same. Does not know
who chooses the values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["ALLOCATOR_NAMES", "SETTINGS", "settings_in"]

ALLOCATOR_NAMES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""Both name the allocator's settings. Where both are set torch reads the first alone."""

SETTINGS = (
    # Chosen for every trial.
    "DS_ACCELERATOR",
    "OMP_NUM_THREADS",
    *ALLOCATOR_NAMES,
    "TOKENIZERS_PARALLELISM",
    "TORCH_CUDA_ARCH_LIST",
    # Not chosen, but a trial that has them is faster, slower, larger or smaller for it.
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_MODULE_LOADING",
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "MALLOC_ARENA_MAX",
    "MALLOC_CONF",
    "MALLOC_TRIM_THRESHOLD_",
    "MKL_NUM_THREADS",
    "NCCL_ALGO",
    "NCCL_BUFFSIZE",
    "NCCL_MAX_NCHANNELS",
    "NCCL_MIN_NCHANNELS",
    "NCCL_NVLS_ENABLE",
    "NCCL_P2P_DISABLE",
    "NCCL_P2P_LEVEL",
    "NCCL_PROTO",
    "NCCL_SHM_DISABLE",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_PLACES",
    "OMP_PROC_BIND",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TORCH_NCCL_AVOID_RECORD_STREAMS",
)
"""The names, in the order in which they are shown. None holds a path, a host or a secret."""

_PLAIN = re.compile(r"[A-Za-z0-9_.,:;=+*/{}\[\] -]{1,500}")
"""A value that means the same in a shell, in Python and in a README."""


def settings_in(environment: Mapping[str, str]) -> dict[str, str]:
    """What an environment says of these; empty values, and odd ones, are left out."""
    return {
        name: value
        for name in SETTINGS
        if isinstance(value := environment.get(name), str) and _PLAIN.fullmatch(value)
    }
