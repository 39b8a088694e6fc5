"""Optimizers against the device and what is installed."""

from __future__ import annotations

from autotune.hardware import Hardware
from autotune.software import Software
from autotune.strategy import Strategy
from autotune.workload import Workload

__all__ = ["conflict"]


def conflict(
    strategy: Strategy, workload: Workload, hardware: Hardware, software: Software
) -> str | None:
    """Why the question does not allow these knobs, in words; None where it does."""
    return None
