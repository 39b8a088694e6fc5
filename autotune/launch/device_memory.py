"""Memory in use on the GPUs of one launcher, and the wait until the driver has freed it.

Does not know who uses it.
"""

from __future__ import annotations

import time

from autotune.launch.rank_environment import devices_of
from autotune.machine.hardware import DeviceType, Hardware, visible_gpus

__all__ = ["device_bytes_in_use", "wait_for_device"]


def device_bytes_in_use(hardware: Hardware, slot: int) -> int:
    """Memory in use on the launcher's GPUs, by anybody; 0 on the CPU."""
    if hardware.device_type is not DeviceType.CUDA:
        return 0
    return sum(gpu.used_bytes for gpu in visible_gpus()[devices_of(hardware, slot)])


def wait_for_device(
    hardware: Hardware, slot: int, used_before: int, timeout_s: float = 5.0
) -> None:
    """The driver frees a dead process's memory a moment later; wait until it has."""
    slack = 64 * 2**20 * hardware.num_devices
    deadline = time.monotonic() + timeout_s
    limit = used_before + slack
    while device_bytes_in_use(hardware, slot) > limit and time.monotonic() < deadline:
        time.sleep(0.02)
