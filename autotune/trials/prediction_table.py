"""Predictions of many strategies: the figures of `Prediction`, one array element for each row.

Without what only a person looks at: moment, breakdown, parts of a step. Does not know how anything
is predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from autotune.question.limits import Limits

__all__ = ["PredictionTable"]

_Bytes = NDArray[np.int64]
_Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionTable:
    """The predictions of a table of strategies, in its order; arrays have one element per row."""

    peak_memory_bytes: _Bytes
    peak_memory_lower_bytes: _Bytes
    peak_memory_upper_bytes: _Bytes
    peak_allocated_bytes: _Bytes
    host_memory_bytes: _Bytes
    host_memory_lower_bytes: _Bytes
    host_memory_upper_bytes: _Bytes
    host_save_bytes: _Bytes
    disk_bytes: _Bytes
    step_time_s: _Numbers
    tokens_per_second: _Numbers
    device_overhead_bytes: _Bytes

    def __len__(self) -> int:
        """Strategies."""
        return len(self.step_time_s)

    @property
    def peak_device_bytes(self) -> _Bytes:
        """Expected peak of the whole device."""
        return self.peak_memory_bytes + self.device_overhead_bytes

    @property
    def peak_device_upper_bytes(self) -> _Bytes:
        """The whole device is not expected to need more than this."""
        return self.peak_memory_upper_bytes + self.device_overhead_bytes

    @property
    def peak_host_bytes(self) -> _Bytes:
        """Expected peak of one host, while a checkpoint is saved."""
        return self.host_memory_bytes + self.host_save_bytes

    def missing_bytes(self, limits: Limits) -> _Bytes:
        """As `Prediction.missing_bytes`."""
        device = np.maximum(0, self.peak_device_bytes - limits.device_bytes)
        disk = np.maximum(0, self.disk_bytes - limits.disk_bytes)
        missing: _Bytes = device + np.maximum(0, self.peak_host_bytes - limits.host_bytes) + disk
        return missing

    def might_fit(self, limits: Limits) -> NDArray[np.bool_]:
        """As `Prediction.might_fit`."""
        lower = self.peak_memory_lower_bytes + self.device_overhead_bytes
        fits: NDArray[np.bool_] = (
            (lower <= limits.device_bytes)
            & (self.host_memory_lower_bytes <= limits.host_bytes)
            & (self.disk_bytes <= limits.disk_bytes)
        )
        return fits

    def closest(self, num: int, limits: Limits) -> list[int]:
        """Rows that miss the least memory, least first; of equals those with the lower peak."""
        missing = self.missing_bytes(limits)
        rows: list[int] = np.lexsort((self.peak_memory_bytes, missing))[:num].tolist()
        return rows

    @classmethod
    def joined(cls, parts: Sequence[PredictionTable]) -> PredictionTable:
        """One table of consecutive parts."""
        return cls(
            **{
                field.name: np.concatenate(
                    [np.empty(0, int), *(getattr(part, field.name) for part in parts)]
                )
                for field in fields(cls)
            }
        )
