"""Checks offload against the device, what can be compiled, and --nvme-path.

Room in host memory and on disk is the pruner's question: it depends on the prediction.
"""

from __future__ import annotations

from autotune.knob_values import Offload, Precision
from autotune.machine.hardware import DeviceType, Hardware
from autotune.machine.software import Software
from autotune.question.workload import Workload
from autotune.space.strategy import Strategy

__all__ = ["conflict"]

_LEAST_FILE_BYTES = 2**20
"""DeepSpeed keeps smaller pieces in memory (`swap_tensor/utils.py`, `MIN_AIO_BYTES`)."""

_FP32 = 4


def conflict(
    strategy: Strategy, workload: Workload, hardware: Hardware, software: Software
) -> str | None:
    """Why the question does not allow these knobs, in words; None where it does."""
    destination = strategy.offload_optimizer
    if destination is not Offload.NONE and not software.has_compiler:
        return (
            f"offload_optimizer {destination} needs a C++ compiler and ninja, "
            "for DeepSpeed's CPU Adam"
        )
    if strategy.offload_ratio < 1 and hardware.device_type is not DeviceType.CUDA:
        return (
            f"offload_ratio {strategy.offload_ratio} needs a GPU: on the CPU both parts of the "
            "optimizer are in the same memory, and CPU Adam updates both"
        )
    if strategy.uses_nvme:
        return _nvme(hardware, software) or _too_small_for_files(strategy, workload, hardware)
    return None


def _nvme(hardware: Hardware, software: Software) -> str | None:
    if hardware.nvme_path is None:
        return "offloading to nvme needs a folder on a local disk: --nvme-path FOLDER"
    if not software.has_async_io:
        return (
            "offloading to nvme needs DeepSpeed's asynchronous I/O, which is compiled with a C++ "
            "compiler, ninja and libaio: apt install libaio-dev"
        )
    if hardware.device_type is DeviceType.CUDA and not software.has_cuda_toolkit:
        return (
            "offloading to nvme needs DeepSpeed's asynchronous I/O, which is compiled with the "
            "CUDA toolkit: set CUDA_HOME to it"
        )
    return None


def _too_small_for_files(strategy: Strategy, workload: Workload, hardware: Hardware) -> str | None:
    ranks = hardware.num_devices
    if strategy.offload_optimizer is Offload.NVME:
        trained = workload.num_trainable_parameters(strategy.lora_rank, strategy.lora_targets)
        if _FP32 * trained // ranks < _LEAST_FILE_BYTES:
            return (
                f"offload_optimizer nvme: the states of {trained:,} parameters over {ranks} ranks "
                "are less than 1 MiB each, and DeepSpeed leaves them in memory"
            )
    if strategy.offload_param is Offload.NVME:
        largest = workload.model.largest_weight
        element_bytes = _FP32 if strategy.precision is Precision.FP32 else 2
        if element_bytes * largest // ranks < _LEAST_FILE_BYTES:
            return (
                f"offload_param nvme: no weight of {workload.model.name} has 1 MiB on each of "
                f"{ranks} ranks, and DeepSpeed leaves smaller ones in memory"
            )
    return None
