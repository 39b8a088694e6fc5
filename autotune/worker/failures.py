"""Classifies the failure of a trial from an exception's type and the state of memory.

Never from words in a message.
"""

from __future__ import annotations

import errno
import os
import shutil

import torch

from autotune.errors import ConfigError
from autotune.machine.hardware import FULL_DISK_BYTES
from autotune.trials.trial import FailureKind, Phase

__all__ = ["classify"]

_FREE_SHARE = 0.01
"""Below this fraction of free memory, an untyped error of a library is taken for out of memory."""

_CUDA_ERROR_MEMORY_ALLOCATION = 2
"""`cudaErrorMemoryAllocation` of CUDA's `driver_types.h`."""


def classify(error: BaseException, phase: Phase, swap_folder: str | None = None) -> FailureKind:
    """The kind of failure that an exception stands for.

    Args:
        error: what ended the training.
        phase: what the rank was doing; wrong settings show while the engine is made.
        swap_folder: where the trial keeps what it offloads to NVMe.
    """
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return FailureKind.DISK_FULL
    if isinstance(error, AssertionError) and swap_folder is not None and _is_full(swap_folder):
        return FailureKind.DISK_FULL
    if _is_device_out_of_memory(error):
        return FailureKind.DEVICE_OUT_OF_MEMORY
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return FailureKind.HOST_OUT_OF_MEMORY
    if isinstance(error, torch.distributed.DistError):
        return FailureKind.COMMUNICATION
    if isinstance(error, ConfigError):
        return FailureKind.INVALID_CONFIGURATION
    if phase is Phase.INIT and _is_refusal(error):
        return FailureKind.INVALID_CONFIGURATION
    return FailureKind.CRASH


def _is_full(folder: str) -> bool:
    return os.path.isdir(folder) and shutil.disk_usage(folder).free < FULL_DISK_BYTES


def _is_device_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if getattr(error, "error_code", None) == _CUDA_ERROR_MEMORY_ALLOCATION:
        return True
    # cuBLAS and NCCL raise plain RuntimeErrors when they find no room for their workspace.
    return isinstance(error, RuntimeError) and _device_is_full()


def _device_is_full() -> bool:
    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return False
    try:
        free, total = torch.cuda.mem_get_info()
    except RuntimeError:
        return False
    pool = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return free < _FREE_SHARE * total and pool < _FREE_SHARE * total


def _is_refusal(error: BaseException) -> bool:
    """Whether DeepSpeed, transformers or PEFT turned the settings down."""
    from deepspeed.runtime.config import DeepSpeedConfigError
    from deepspeed.runtime.zero.utils import ZeRORuntimeException
    from pydantic import ValidationError

    refusals = (
        ValueError,
        TypeError,
        AssertionError,
        NotImplementedError,
        ValidationError,
        DeepSpeedConfigError,
        ZeRORuntimeException,
    )
    return isinstance(error, refusals)
