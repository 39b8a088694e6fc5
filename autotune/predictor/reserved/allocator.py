"""PyTorch's caching allocator with expandable segments, simulated over a sequence of tensors.

Read from `c10/cuda/CUDACachingAllocator.cpp`. Sizes are rounded to 512 bytes. The allocator takes
the smallest free block that is large enough, the lowest of equal ones, and the rest of it stays
free. Free neighbours are merged. The block at the end of the segment can grow, so it counts as
larger than all others and is taken last. Memory is mapped in pages of 20 MiB. If the device is
full, whole free pages are unmapped, and then mapped again at other addresses. Every stream has a
segment of its own. Of the pool of blocks up to 1 MiB only the bytes are simulated, not the
addresses.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Mapping

__all__ = ["LARGE_POOL_BYTES", "Allocator"]

LARGE_POOL_BYTES = 2**20
"""Blocks up to this size lie in a pool of their own (`kSmallSize`)."""

_ROUND_BYTES = 512
_PAGE_BYTES = 20 * 2**20
_SMALL_PAGE_BYTES = 2 * 2**20


class _Device:
    """The state of a device, common to the segments of all streams."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.segments: list[Allocator] = []
        self.allocated = self.peak_allocated = self.peak_reserved = 0
        self.num_retries = 0
        self.moment = self.peak_moment = ""
        self.parts: Counter[str] = Counter()
        """Live bytes of large blocks, by purpose."""
        self.peak_parts: Mapping[str, int] = {}

    @property
    def mapped(self) -> int:
        return sum(segment.mapped_bytes for segment in self.segments)


class Allocator:
    """One stream's expandable segment of large blocks.

    Args:
        capacity_bytes: the most bytes that can be mapped.
        beside: the allocator of another stream of the same device. Both share one capacity, and
            peaks count all streams together.
    """

    def __init__(self, capacity_bytes: int = 2**62, *, beside: Allocator | None = None) -> None:
        self._device: _Device = beside._device if beside else _Device(capacity_bytes)
        self._device.segments.append(self)
        self._free_blocks: list[tuple[int, int]] = []
        """Size and address of free blocks, ascending; none lies at the end of the segment."""
        self._size_at: dict[int, int] = {}
        """Size of each free block, by its start."""
        self._start_of: dict[int, int] = {}
        """Start of each free block, by its end."""
        self._live: dict[int, int] = {}
        self._part_of: dict[int, str] = {}
        """Purpose of each live block, by its address."""
        self._put_aside: set[int] = set()
        self._holes: dict[int, int] = {}
        """Size of each unmapped range, by its start."""
        self._end = 0
        self._mapped_end = 0
        self._small = self._peak_small = 0

    @property
    def peak_allocated_bytes(self) -> int:
        """Peak so far of the bytes of all live blocks."""
        return self._device.peak_allocated

    @property
    def peak_reserved_bytes(self) -> int:
        """Peak so far of the mapped bytes."""
        small = sum(
            -(-segment._peak_small // _SMALL_PAGE_BYTES) * _SMALL_PAGE_BYTES
            for segment in self._device.segments
        )
        return self._device.peak_reserved + small

    @property
    def moment(self) -> str:
        """Name of the current moment."""
        return self._device.moment

    @moment.setter
    def moment(self, moment: str) -> None:
        self._device.moment = moment

    @property
    def peak_moment(self) -> str:
        """Name of the moment at which the peak was first mapped."""
        return self._device.peak_moment

    @property
    def peak_parts(self) -> Mapping[str, int]:
        """Bytes of the large blocks that were live at the peak, by purpose."""
        return self._device.peak_parts

    @property
    def num_retries(self) -> int:
        """How often the device was full and free pages were unmapped."""
        return self._device.num_retries

    @property
    def mapped_bytes(self) -> int:
        """Bytes of this segment that are mapped now, in whole pages."""
        return _pages(self._mapped(self._mapped_end))

    def allocate(self, size_bytes: int, part: str = "") -> int:
        """Allocate a block for a purpose; returns its address, by which it is freed.

        The address of a small block is negative, and encodes its size.
        """
        size = -(-size_bytes // _ROUND_BYTES) * _ROUND_BYTES
        device = self._device
        device.allocated += size
        if device.allocated > device.peak_allocated:
            device.peak_allocated = device.allocated
        if size <= LARGE_POOL_BYTES:
            self._small += size
            self._peak_small = max(self._peak_small, self._small)
            return -1 - size
        device.parts[part] += size
        index = bisect_left(self._free_blocks, (size, -1))
        if index < len(self._free_blocks):
            free, address = self._free_blocks.pop(index)
            del self._size_at[address], self._start_of[address + free]
            if free > size:
                self._add(address + size, free - size)
        else:
            address = self._map(size)
        self._live[address] = size
        self._part_of[address] = part
        return address

    def becomes(self, address: int, part: str) -> None:
        """Change the purpose of a live block."""
        if address >= 0:
            size, parts = self._live[address], self._device.parts
            parts[self._part_of[address]] -= size
            parts[part] += size
            self._part_of[address] = part

    def free(self, address: int) -> None:
        """Free a block."""
        if address < 0:
            self._small -= -1 - address
            self._device.allocated -= -1 - address
            return
        size = self._live.pop(address)
        self._device.parts[self._part_of.pop(address)] -= size
        if address in self._put_aside:
            self._put_aside.remove(address)
        else:
            self._device.allocated -= size
        behind = address + size
        start = self._start_of.pop(address, None)
        if start is not None:
            size += self._remove(start)
            address = start
        if behind == self._end:
            self._end = address
            return
        if behind in self._size_at:
            more = self._remove(behind)
            del self._start_of[behind + more]
            size += more
        self._add(address, size)

    def put_aside(self, address: int) -> None:
        """Count a block as freed while another stream still uses it (`record_stream`).

        Its memory can be allocated again only after `free`.
        """
        if address >= 0:
            self._put_aside.add(address)
            self._device.allocated -= self._live[address]

    def reset(self) -> None:
        """Start again with an empty, unmapped segment; peaks stay."""
        self._device.allocated -= self._small
        self._device.allocated -= sum(
            size for address, size in self._live.items() if address not in self._put_aside
        )
        for address, size in self._live.items():
            self._device.parts[self._part_of[address]] -= size
        self._free_blocks, self._size_at, self._start_of = [], {}, {}
        self._part_of = {}
        self._live, self._holes, self._put_aside = {}, {}, set()
        self._end = self._mapped_end = self._small = 0

    def _add(self, address: int, size: int) -> None:
        insort(self._free_blocks, (size, address))
        self._size_at[address] = size
        self._start_of[address + size] = address

    def _remove(self, address: int) -> int:
        size = self._size_at.pop(address)
        del self._free_blocks[bisect_left(self._free_blocks, (size, address))]
        return size

    def _map(self, size: int) -> int:
        """Memory for a block that fits into no free block; returns its address."""
        device = self._device
        others = device.mapped - self.mapped_bytes
        if others + self._mapped(self._end + size) > device.capacity_bytes:
            device.num_retries += 1
            for segment in device.segments:
                segment._give_back()
        address = self._map_again(size) if self._holes else None
        if address is None:
            address = self._end
            self._end += size
            self._mapped_end = max(self._mapped_end, self._end)
        mapped = device.mapped
        if mapped > device.peak_reserved:
            device.peak_reserved = mapped
            device.peak_moment, device.peak_parts = device.moment, dict(device.parts)
        return address

    def _mapped(self, end: int) -> int:
        return max(end, self._mapped_end) - sum(self._holes.values())

    def _give_back(self) -> None:
        """Unmap the whole pages of free blocks; the ends of the blocks stay mapped."""
        for size, address in list(self._free_blocks):
            first = _pages(address)
            last = (address + size) // _PAGE_BYTES * _PAGE_BYTES
            if first >= last:
                continue
            self._take_out(address)
            if first > address:
                self._add(address, first - address)
            if address + size > last:
                self._add(last, address + size - last)
            self._holes[first] = last - first
        self._mapped_end = self._end

    def _map_again(self, size: int) -> int | None:
        """The start of the first range with holes that is large enough, or can grow at the end."""
        for hole in sorted(self._holes):
            start = self._start_of.get(hole, hole)
            end = start
            while more := self._size_at.get(end) or self._holes.get(end):
                end += more
            if end - start >= size or end == self._end:
                self._take_range(start, end, start + size)
                return start
        return None

    def _take_range(self, start: int, end: int, taken_to: int) -> None:
        """Map free blocks and holes up to an address; everything behind it stays unchanged."""
        at = start
        while at < end:
            is_free = at in self._size_at
            piece_end = at + (self._size_at[at] if is_free else self._holes.pop(at))
            if is_free:
                self._take_out(at)
            mapped_from = max(at, taken_to)
            mapped_to = piece_end if is_free else min(piece_end, max(at, _pages(taken_to)))
            if mapped_to > mapped_from:
                self._add(mapped_from, mapped_to - mapped_from)
            if piece_end > max(at, mapped_to):
                self._holes[max(at, mapped_to)] = piece_end - max(at, mapped_to)
            at = piece_end
        if taken_to > self._end:
            self._end = taken_to
            self._mapped_end = max(self._mapped_end, taken_to)

    def _take_out(self, address: int) -> None:
        size = self._remove(address)
        del self._start_of[address + size]


def _pages(size: int) -> int:
    return -(-size // _PAGE_BYTES) * _PAGE_BYTES
