"""The allocations of ZeRO-1 and ZeRO-2 around forward and backward of one rank.

Read from `runtime/zero/stage_1_and_2.py` of DeepSpeed 0.19.8. With offload, this is the part that
stays on the device. Does not know a model's code.
"""

from __future__ import annotations

from itertools import groupby

from autotune.predictor.memory.precision import NORM_BYTES
from autotune.predictor.reserved.allocator import Allocator
from autotune.predictor.reserved.engine import Engine, Part

__all__ = ["Stages12"]


class Stages12(Engine):
    """ZeRO-1 and ZeRO-2 (`stage_1_and_2.py`), with or without offload."""

    _buckets: tuple[int, ...] = ()
    _pending: tuple[int, ...] = ()
    """Weights whose gradients wait in the bucket."""
    _oversized: int | None = None
    _partition: int | None = None
    _averaged: int | None = None

    def _prepare(self) -> None:
        """Make the allocator of the stream on which gradients are reduced."""
        plan, allocator = self._plan, self._allocator
        self._reducing = Allocator(beside=allocator) if plan.overlaps else allocator
        self._parts = self._divide()
        self._received = max(
            sum(self._elements(weight) for weight, parts in self._parts.items() if rank in parts)
            for rank in range(plan.num_ranks)
        )
        """Parameters of weights that belong to one rank at least in part; of the rank with the
        most."""

    def _divide(self) -> dict[int, tuple[int, ...]]:
        """Ranks that have a part of each trained weight, in order."""
        parts: dict[int, tuple[int, ...]] = {}
        group = start = 0
        for weight, told in enumerate(self._weights):
            if not told.is_trained:
                continue
            own = self._groups[group]
            if start >= own * self._plan.num_ranks:
                group, start, own = group + 1, 0, self._groups[group + 1]
            end = start + self._elements(weight)
            parts[weight] = tuple(range(start // own, (end - 1) // own + 1))
            start = end
        return parts

    def _initialise(self) -> None:
        """Make weights views of flat copies, and masters of their partitions, as `__init__`."""
        plan, e = self._plan, self._plan.element_bytes
        made = zip(self._make_weights(), self._weights, strict=True)
        trained = [address for address, weight in made if weight.is_trained]
        for num in self._groups:
            own = self._members(trained, num)
            if not plan.flattens_on_device:
                self._free(*own)
            flat = self._allocate(e * num * plan.num_ranks, Part.FLATTENED)
            if plan.flattens_on_device:
                self._free(*own)
            self._allocator.becomes(flat, Part.WEIGHTS)
            part = self._allocate(e * num, Part.MASTERS)
            if plan.is_offloaded:
                # It is moved to the host and converted there.
                self._free(part)
            else:
                self._convert(part, num, Part.MASTERS)
        if plan.is_offloaded:
            self._allocate(max(self._trained), Part.OFFLOAD)
        else:
            sizes = [plan.master_bytes * num for num in self._groups]
            self._free(*[self._allocate(size, Part.GRADIENTS) for size in sizes])

    def _members(self, trained: list[int], num: int) -> list[int]:
        """Take the next weights, which make up a group, off the list."""
        left, own = num * self._plan.num_ranks, []
        sizes = iter(self._trained[len(self._trained) - len(trained) :])
        while trained and left > 0:
            left -= next(sizes) // self._plan.element_bytes
            own.append(trained.pop(0))
        return own

    def _take(self, weight: int, address: int) -> None:
        """Handle a gradient as `process_gradients` does.

        On one rank, ZeRO-1 reduces only when backward has ended.
        """
        plan = self._plan
        if not self._buckets:
            size = plan.element_bytes * plan.bucket_elements
            num = 1 + plan.overlaps
            self._buckets = tuple(self._allocate(size, Part.BUCKETS) for _ in range(num))
        if plan.zero_stage == 1:
            # A trace may confuse the fused norms of two layers: they are small.
            if weight in self._gradients:
                self._free(address)
                address = self._gradients[weight]
            if not (self._is_last and plan.overlaps):
                self._gradients[weight] = address
                return
            self._gradients.pop(weight, None)
        self._put_into_bucket(weight, address)

    def _put_into_bucket(self, weight: int, address: int) -> None:
        """As `reduce_independent_p_g_buckets_and_remove_grads` does."""
        bucket = self._plan.bucket_elements
        num = self._elements(weight)
        if sum(map(self._elements, self._pending)) + num > bucket:
            self._reduce()
        if num > bucket:
            self._oversized = address
        else:
            self._free(address)
        self._pending += (weight,)

    def _reduce(self) -> None:
        """Reduce the bucket, as `reduce_ipg_grads` does.

        The first gradient has `copy_grads_in_partition` allocate memory for all of them. With
        offload, each gradient has its norm computed and is converted before it is moved.
        """
        plan, reducing = self._plan, self._reducing
        if plan.num_ranks > 1:
            self._send(sum(map(self._elements, self._pending)))
        if plan.is_offloaded:
            for num in map(self._elements, self._pending):
                for size in (NORM_BYTES * num, plan.master_bytes * num):
                    reducing.free(reducing.allocate(size, Part.OFFLOAD))
        elif self._pending and self._partition is None:
            size = plan.element_bytes * self._received
            self._partition = reducing.allocate(size, Part.GRADIENTS)
        if self._oversized is not None:
            self._free(self._oversized)
        self._oversized, self._pending = None, ()

    def _send(self, num: int) -> None:
        """Reduce as `allreduce_bucket` does.

        It makes a flat copy if there are partitions of several ranks, and another if communication
        has another precision.
        """
        plan, copies = self._plan, []
        parts = [part for weight in self._pending for part in self._parts[weight]]
        if len(list(groupby(parts))) > 1:
            copies.append(plan.element_bytes * num)
        if plan.reduce_bytes != plan.element_bytes:
            copies.append(plan.reduce_bytes * num)
        for address in [self._reducing.allocate(size, Part.BUCKETS) for size in copies]:
            self._reducing.free(address)

    def _end_backward(self) -> None:
        """End backward, as `independent_gradient_partition_epilogue` does."""
        if self._plan.zero_stage == 1 and not self._is_last:
            return
        for weight in sorted(self._gradients):
            self._put_into_bucket(weight, self._gradients[weight])
        self._gradients = {}
        self._reduce()
        self._free(*self._buckets)
        self._buckets = ()
        if self._averaged is None:
            self._averaged = self._partition
        elif self._partition is not None:
            self._reducing.free(self._partition)
        self._partition = None

    def _step(self) -> None:
        """Update each group, as `step` does.

        It makes a flat copy of the group's averaged gradients, and converts it to the master's
        precision. The averaged gradients of all groups are in one buffer, which is freed with the
        last group.
        """
        if self._plan.is_offloaded:
            return
        self._add_up_norm()
        for index, num in enumerate(self._groups):
            gradient = self._allocate(self._plan.element_bytes * num, Part.GRADIENTS)
            gradient = self._convert(gradient, num, Part.GRADIENTS)
            if index == len(self._groups) - 1 and self._averaged is not None:
                self._reducing.free(self._averaged)
                self._averaged = None
            if not self._has_states:
                self._make_states(num)
            self._free(gradient)
        self._has_states = True
