"""The expected peak memory of the worst rank: the peak, its bounds and its parts.

Does not know how they are computed.
"""

from __future__ import annotations

from dataclasses import dataclass

from autotune.predictor.arithmetic import chosen, greatest

__all__ = ["PeakMemory"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PeakMemory:
    """Peak memory that the allocator of the worst rank reserves."""

    expected_bytes: int
    allocated_bytes: int
    """Bytes of live tensors: `expected_bytes` without the allocator's slack."""
    lower_bytes: int
    upper_bytes: int
    managed_bytes: int
    """Bytes of managed memory on the device, which the allocator does not count."""
    moments: dict[str, dict[str, int]]
    """Bytes that each moment of a step holds, by part."""
    slack: str
    """Name of the part that is not live tensors: the allocator's or the process's."""
    init_beside_bytes: int = 0
    """Bytes reserved at initialisation beside live tensors: blocks that do not fit into freed
    memory."""

    @property
    def moment(self) -> str:
        """The moment of the peak."""
        totals = self._totals()
        return max(totals, key=totals.__getitem__)

    def _totals(self) -> dict[str, int]:
        apart = {"initialisation": self.init_beside_bytes}
        return {
            name: sum(parts.values()) + apart.get(name, 0) for name, parts in self.moments.items()
        }

    def at_peak(self, *parts: str) -> int:
        """Bytes of some parts at the peak."""
        found: int = 0
        totals = self._totals()
        most = greatest(*totals.values())
        # If several moments hold the same, the first one is the peak.
        for name, moment in reversed(self.moments.items()):
            found = chosen(totals[name] == most, sum(moment.get(part, 0) for part in parts), found)
        return found

    @property
    def breakdown_bytes(self) -> dict[str, int]:
        """Bytes of each part of the peak; they sum up to `expected_bytes`."""
        parts = {part: size for part, size in self.moments[self.moment].items() if size}
        return parts | {self.slack: self.expected_bytes - sum(parts.values())}
