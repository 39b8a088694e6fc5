"""The allocations of ZeRO-3 around forward and backward of one rank.

Read from `runtime/zero/stage3.py` of DeepSpeed 0.19.8. The whole optimizer may be on the host.
Does not know a model's code, nor which weights are gathered when.
"""

from __future__ import annotations

from collections import deque

from autotune.predictor.memory.precision import NORM_BYTES
from autotune.predictor.reserved.allocator import Allocator
from autotune.predictor.reserved.engine import Engine, Part
from autotune.predictor.reserved.gathered_weights import GatheredWeights
from autotune.profile.script import MicroStep

__all__ = ["Stage3"]

_BUCKETS_BEHIND = 2
"""Number of gradient buckets by which the device is behind the host in backward. Freed memory can
be allocated again only after the device has finished with it. The host waits for the third bucket
(`max_param_reduce_events`). Of the values 0 to 3, this one fits eight trials on two H200 best:
with 0 they took 2 to 5 GiB more than was simulated."""


class Stage3(Engine):
    """ZeRO-3 (`stage3.py`); on one rank, no weight is gathered."""

    def _prepare(self) -> None:
        """Make the allocators of the streams that gather weights and reduce gradients."""
        plan, allocator = self._plan, self._allocator
        self._pending: list[int] = []
        """Weights whose gradients wait in the bucket."""
        self._late: deque[list[tuple[Allocator, int]]] = deque([[]])
        """Blocks that were freed since each of the latest buckets was reduced."""
        self._has_streams = plan.overlaps and plan.num_ranks > 1
        self._gathering, self._reducing = (
            Allocator(beside=allocator) if self._has_streams else allocator for _ in range(2)
        )
        elements = [self._elements(weight) for weight in range(len(self._weights))]
        self._gathered = GatheredWeights(
            self._gathering, elements, plan.element_bytes, free=self._free_gathered
        )
        self._sub_groups = self._divide()

    def _divide(self) -> list[int]:
        """This rank's parameters in each sub-group, as `_create_fp16_sub_groups` makes them."""
        groups = [0]
        for size in self._trained:
            if groups[-1] >= self._plan.sub_group_elements:
                groups.append(0)
            groups[-1] += self._own(size // self._plan.element_bytes)
        return groups

    def _own(self, num: int) -> int:
        return -(-num // self._plan.num_ranks)

    def _initialise(self) -> None:
        """Move partitions of weights to the host, unmap all memory, and move them back as one."""
        plan, e, owned = self._plan, self._plan.element_bytes, sum(self._sub_groups)
        for weight in self._weights:
            whole = self._allocate(weight.size_bytes, Part.WEIGHTS)
            self._allocate(self._own(weight.size_bytes), Part.WEIGHTS)
            self._free(whole)
        self._allocator.reset()
        for weight in self._weights:
            if not weight.is_trained:
                self._allocate(self._own(weight.size_bytes), Part.WEIGHTS)
        self._allocate(e * owned, Part.WEIGHTS)
        if not plan.is_offloaded:
            self._make_masters()
            self._pass_by([plan.master_bytes * max(self._sub_groups)], Part.GRADIENTS)
        self._allocate(plan.reduce_bytes * plan.bucket_elements, Part.BUCKETS)
        if not plan.is_offloaded:
            self._allocate(e * owned, Part.GRADIENTS)
        if plan.num_ranks > 1:
            # `create_reduce_and_remove_grad_hooks` gathers each weight.
            self._pass_by(self._trained, Part.GATHERED)

    def _make_masters(self) -> None:
        """Make masters, as `_create_fp32_partitions` does.

        Each is a copy of a converted tensor, which lives until the next one is converted.
        """
        plan, before = self._plan, None
        for num in self._sub_groups:
            if plan.master_bytes != plan.element_bytes:
                converted = self._allocate(plan.master_bytes * num, Part.MASTERS)
                if before is not None:
                    self._free(before)
                before = converted
            self._allocate(plan.master_bytes * num, Part.MASTERS)
        if before is not None:
            self._free(before)

    def _micro_step(self, micro_step: MicroStep) -> None:
        self._gathered.begin_forward()
        super()._micro_step(micro_step)

    def _fetch(self, weights: tuple[int, ...]) -> None:
        if self._plan.num_ranks > 1:
            self._gathered.fetch(weights)

    def _release(self, weights: tuple[int, ...]) -> None:
        self._gathered.release(weights)

    def _take(self, weight: int, address: int) -> None:
        num = self._elements(weight)
        if sum(map(self._elements, self._pending)) + num > self._plan.bucket_elements:
            self._reduce()
        self._give_back(self._allocator, address)
        self._pending.append(weight)

    def _reduce(self) -> None:
        """Reduce the bucket, as `__avg_scatter_grads` and `reduce_scatter_coalesced` do.

        They copy the gradients that are sent. The bucket has the precision of communication, and
        partitions are converted after it.
        """
        plan, reducing, copies = self._plan, self._reducing, []
        nums = [self._elements(weight) for weight in self._pending]
        if len(nums) > 1:
            copies.append(plan.reduce_bytes * sum(nums))
        if plan.reduce_bytes != plan.element_bytes:
            copies += [plan.element_bytes * self._own(num) for num in nums]
        sent = [reducing.allocate(size, Part.BUCKETS) for size in copies]
        if plan.is_offloaded:
            self._offload([self._own(num) for num in nums])
        for address in sent:
            reducing.free(address)
        self._pending = []
        self._late.append([])
        self._catch_up(_BUCKETS_BEHIND)

    def _offload(self, parts: list[int]) -> None:
        """Offload partitions, as `partition_grads` does.

        Each accumulated partition is copied to the device, and finally to the host in fp32.
        """
        plan, reducing = self._plan, self._reducing
        for num in parts:
            part = reducing.allocate(plan.element_bytes * num, Part.OFFLOAD)
            if self._is_last:
                for size in (NORM_BYTES * num, plan.master_bytes * num):
                    reducing.free(reducing.allocate(size, Part.OFFLOAD))
            reducing.free(part)

    def _give_back(self, allocator: Allocator, address: int) -> None:
        """Free a block, but only after other streams have finished with it (`record_stream`)."""
        if not self._has_streams:
            allocator.free(address)
            return
        allocator.put_aside(address)
        self._late[-1].append((allocator, address))

    def _free_gathered(self, address: int) -> None:
        """Free a gathered weight; in forward, the host is not ahead because of its hooks."""
        if self._pending or len(self._late) > 1:
            self._give_back(self._gathering, address)
        else:
            self._gathering.free(address)

    def _catch_up(self, num_behind: int) -> None:
        while len(self._late) > num_behind:
            for allocator, address in self._late.popleft():
                allocator.free(address)

    def _end_backward(self) -> None:
        self._reduce()
        self._catch_up(0)
        self._late.append([])

    def _step(self) -> None:
        """Update one sub-group after the other, as `_prepare_fp32_grad_for_sub_group` does."""
        self._gathered.release_all()
        if self._plan.is_offloaded:
            return
        e = self._plan.element_bytes
        sizes = [NORM_BYTES * self._own(size // e) for size in self._trained]
        self._pass_by(sizes, Part.GRADIENTS)
        for num in self._sub_groups:
            gradient = self._allocate(e * num, Part.GRADIENTS)
            gradient = self._convert(gradient, num, Part.GRADIENTS)
            if not self._has_states:
                self._make_states(num)
            self._free(gradient)
        self._has_states = True
