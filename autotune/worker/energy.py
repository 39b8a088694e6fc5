"""Energy used by the device of one rank, from NVML's counter; nothing on the CPU."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from autotune.machine.hardware import DeviceType

__all__ = ["EnergyMeter", "GpuEnergyMeter", "NoEnergyMeter", "energy_meter"]


class EnergyMeter(Protocol):
    """Watches one rank's device."""

    def joules(self) -> float | None:
        """What the device has used since a moment of its own; None where nothing counts it."""
        ...


class GpuEnergyMeter:
    """The energy counter of one GPU. GPUs older than Volta and MIG parts have none.

    Args:
        uuid: NVML's name of the GPU, `GPU-` in front.
        nvml: the module `pynvml`.
    """

    def __init__(self, uuid: str, nvml: Any) -> None:
        self._nvml = nvml
        self._handle = None
        try:
            nvml.nvmlInit()
            self._handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        except nvml.NVMLError:
            # Energy is left out then; a trial does not fail for it.
            return

    def joules(self) -> float | None:
        """The driver's counter, which runs from its start on; it counts millijoules."""
        if self._handle is None:
            return None
        try:
            millijoules = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except self._nvml.NVMLError:
            return None
        return float(millijoules) / 1000


class NoEnergyMeter:
    """The counter of a device that does not count energy."""

    def joules(self) -> float | None:
        """Absent, which is not zero."""
        return None


def energy_meter(device: torch.device) -> EnergyMeter:
    """The meter for a rank's device."""
    if device.type != DeviceType.CUDA:
        return NoEnergyMeter()
    import pynvml

    # torch numbers only the visible GPUs, NVML all of them; the UUID is the same for both.
    return GpuEnergyMeter(f"GPU-{torch.cuda.get_device_properties(device).uuid}", pynvml)
