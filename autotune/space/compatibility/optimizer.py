"""Checks optimizers against the device and what is installed."""

from __future__ import annotations

from autotune.knob_values import Optimizer
from autotune.machine.hardware import DeviceType, Hardware
from autotune.machine.software import Software
from autotune.question.workload import Workload
from autotune.space.optimizers import OPTIMIZERS
from autotune.space.strategy import Strategy

__all__ = ["conflict"]


def conflict(
    strategy: Strategy, workload: Workload, hardware: Hardware, software: Software
) -> str | None:
    """Why the question does not allow these knobs, in words; None where it does."""
    is_cuda = hardware.device_type is DeviceType.CUDA
    if OPTIMIZERS[strategy.optimizer].is_paged and not is_cuda:
        return (
            f"optimizer {strategy.optimizer} needs a GPU, whose driver moves the pages; without "
            "one bitsandbytes pages nothing: use adamw_8bit"
        )
    if strategy.optimizer is Optimizer.MUON and is_cuda and not hardware.runs_triton:
        return (
            "optimizer muon needs a GPU of compute capability 8.0 or above, for Triton's kernels: "
            f"{hardware.device_kind} is not one"
        )
    if strategy.optimizer is Optimizer.MUON and not software.has_compiler:
        return "optimizer muon needs a C++ compiler: torch compiles DeepSpeed's kernels"
    return None
