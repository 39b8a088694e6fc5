"""Rates that a machine was measured to attain, which replace those of its data sheet.

Does not know how they are measured, nor what is predicted from them.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Rates"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What `autotune doctor --measure` found; None where it could not be measured."""

    matmul_flops_per_s: float | None = None
    """Large matrix products at 16 bit; of a CPU without bf16 in fp32."""
    memory_bytes_per_s: float | None = None
    """Copies within the device's memory, bytes read and written."""
    kernel_launch_s: float | None = None
    """The host's time for one small kernel, launched from Python with autograd on."""
    host_to_device_bytes_per_s: float | None = None
    """Pinned copies, one device at a time."""
    device_to_host_bytes_per_s: float | None = None
    """Bytes per second from device to pinned host memory."""
    host_memory_bytes_per_s: float | None = None
    """Copies within the host's memory, all cores together, bytes read and written."""
    nvme_bytes_per_s: float | None = None
    """Bytes per second of the disk under --nvme-path, the slower of reading and writing."""
    link_bytes_per_s: float | None = None
    """Bytes that pass each link of a ring in a large all-reduce, per second."""
    collective_s: float | None = None
    """A collective of no size."""
