"""Room for training: on each device, on a host, and on disk."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Bytes that a strategy may use."""

    device_bytes: int
    """Bytes of each device, after the headroom."""
    host_bytes: int
    """Bytes of one host, for all its ranks together, after the headroom."""
    disk_bytes: int = 0
    """Under --nvme-path, by all ranks together."""
