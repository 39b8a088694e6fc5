"""The expected peak memory of the worst rank: the peak, its bounds and its parts.

Does not know how any of it is found.
"""

from __future__ import annotations

from dataclasses import dataclass

from autotune.predictor.arithmetic import chosen, greatest

__all__ = ["PeakMemory"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PeakMemory:
    """Peak memory of the worst rank, as the allocator holds it."""

    expected_bytes: int
    allocated_bytes: int
    """Bytes of live tensors: what is expected without the allocator's slack."""
    lower_bytes: int
    upper_bytes: int
    managed_bytes: int
    """Bytes of managed memory, which the device holds and the allocator does not know of."""
    moments: dict[str, dict[str, int]]
    """Bytes that each moment of a step holds, by part."""
    slack: str
    """Name of the part that is expected beside live tensors."""
    init_beside_bytes: int = 0
    """Bytes reserved beside live tensors at initialisation, by what cannot use room that was given
    back."""

    @property
    def moment(self) -> str:
        """The moment at which the peak is."""
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
        # Of moments that hold as much the first is the peak.
        for name, moment in reversed(self.moments.items()):
            found = chosen(totals[name] == most, sum(moment.get(part, 0) for part in parts), found)
        return found

    @property
    def breakdown_bytes(self) -> dict[str, int]:
        """Bytes of each part of the peak; they sum up to `expected_bytes`."""
        parts = {part: size for part, size in self.moments[self.moment].items() if size}
        return parts | {self.slack: self.expected_bytes - sum(parts.values())}
