"""What DeepSpeed allocates around forward and backward, in order, for one rank.

Read from DeepSpeed 0.19.8 (`runtime/zero/stage_1_and_2.py`, `runtime/zero/stage3.py`,
`runtime/fp16/unfused_optimizer.py`), and held against the allocations of trials on one H100. Does
not know what a model's own code allocates, which a `MicroStep` tells it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autotune.predictor.allocator import Allocator
from autotune.profile.script import Event, MicroStep

__all__ = ["EnginePlan", "Stage0", "Stage3", "Stages12"]

_CUBLAS_BYTES = 32 * 2**20
"""Workspace of one thread's cuBLAS on Hopper; forward and backward are two
(`aten/src/ATen/cuda/CublasHandlePool.cpp`)."""

_NORM_BYTES = 8
"""ZeRO adds up squares in fp64 (`runtime/utils.py`, `get_norm_dtype`)."""

_MICRO_STEPS = 2
"""The first of a step keeps gradients; all others add to them."""

_ALLREDUCE_ELEMENTS = 500_000_000
"""Of the engine's flat copy without ZeRO (`engine.py`, `buffered_allreduce_fallback`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EnginePlan:
    """What a strategy asks of the engine."""

    zero_stage: int
    num_ranks: int
    """Over which ZeRO divides."""
    accumulation: int
    element_bytes: int
    master_bytes: int
    group_elements: int
    """Of a group of the optimizer at most: ZeRO makes one flat tensor of each."""
    state_bytes: tuple[float, ...]
    """Of a trained parameter, one for each tensor that the optimizer keeps on the device."""
    bucket_elements: int
    num_buckets: int
    """2 where gradients travel while backward goes on."""
    sub_group_elements: int
    """Of a step of ZeRO-3."""
    is_offloaded: bool
    """Whether the optimizer is on the host."""
    tied_bytes: int
    """Of an output projection that is made before it shares the embedding's weights."""
    flattens_on_device: bool
    """Whether weights and a copy of them fit the device."""


class _Engine:
    """What all stages do alike."""

    def __init__(
        self,
        allocator: Allocator,
        plan: EnginePlan,
        micro_step: MicroStep,
        first: MicroStep | None = None,
    ) -> None:
        """Of a model that does `first` in the very first micro-step, where that differs."""
        self._allocator = allocator
        self._allocate = allocator.allocate
        self._plan = plan
        self._events = micro_step.events
        self._first_events = (first or micro_step).events
        self._weights = micro_step.weights
        self._trained = [w.size_bytes for w in micro_step.weights if w.is_trained]
        e, ranks = plan.element_bytes, plan.num_ranks
        self._num = sum(self._trained) // e
        """Parameters that are trained."""
        self._groups = [-(-num // ranks) for num in _divided(self._trained, e, plan)]
        """Parameters of this rank in each group."""
        self._owned = sum(self._groups)
        self._num_workspaces = 0
        self._has_states = False
        self._gradients: dict[int, int] = {}

    def run(self, most_steps: int) -> None:
        """Initialisation, and optimizer steps until one takes no more memory than those before.

        States come in the first, so that the second is the first of its kind.
        """
        self._initialise()
        num_micro_steps = min(self._plan.accumulation, _MICRO_STEPS)
        for step in range(most_steps):
            before = self._allocator.peak_reserved_bytes
            for index in range(num_micro_steps):
                is_first, is_last = index == 0, index == num_micro_steps - 1
                events = self._events if step or index else self._first_events
                self._micro_step(events, is_first=is_first)
                self._end_backward(is_first=is_first, is_last=is_last)
            self._step()
            if step and self._allocator.peak_reserved_bytes == before:
                return

    def _initialise(self) -> None:
        raise NotImplementedError

    def _take(self, weight: int, address: int, *, is_first: bool) -> None:
        """A gradient is whole."""
        raise NotImplementedError

    def _end_backward(self, *, is_first: bool, is_last: bool) -> None:
        raise NotImplementedError

    def _step(self) -> None:
        raise NotImplementedError

    def _micro_step(self, events: list[tuple[int, int, int]], *, is_first: bool) -> None:
        allocate, free = self._allocator.allocate, self._allocator.free
        live: dict[int, int] = {}
        for kind, which, told in events:
            if kind == Event.ALLOCATE:
                live[which] = allocate(told)
            elif kind == Event.FREE:
                free(live.pop(which))
            elif kind == Event.READY:
                address = live.pop(which, None)
                if address is None:
                    address = allocate(self._weights[told].size_bytes)
                self._take(told, address, is_first=is_first)
            elif kind == Event.WORK:
                free(allocate(told))
            elif self._num_workspaces < 2:
                allocate(_CUBLAS_BYTES)
                self._num_workspaces += 1
        self._free(*live.values())

    def _free(self, *addresses: int) -> None:
        for address in addresses:
            self._allocator.free(address)

    def _pass_by(self, sizes: Sequence[int]) -> None:
        """Blocks that live one after the other."""
        for size in sizes:
            self._free(self._allocate(size))

    def _make_weights(self) -> list[int]:
        weights = [self._allocate(weight.size_bytes) for weight in self._weights]
        self._pass_by([self._plan.tied_bytes])
        return weights

    def _convert(self, address: int, num: int) -> int:
        """A copy in the master's precision takes the place of one in the weights', or is it."""
        if self._plan.master_bytes == self._plan.element_bytes:
            return address
        converted = self._allocate(self._plan.master_bytes * num)
        self._free(address)
        return converted

    def _make_states(self, num: int) -> None:
        """Of the flat parameters of one group, all its tensors in turn."""
        for size in self._plan.state_bytes:
            self._allocate(int(size * num))

    def _add_up_norm(self) -> None:
        e = self._plan.element_bytes
        self._pass_by([_NORM_BYTES * (size // e) for size in self._trained])


def _divided(trained: Sequence[int], element_bytes: int, plan: EnginePlan) -> list[int]:
    """Parameters of each group of the optimizer (`techniques/optimizers.py`, `_divided`)."""
    groups = [0]
    for size in trained:
        num = size // element_bytes
        if groups[-1] and groups[-1] + num > plan.group_elements:
            groups.append(0)
        groups[-1] += num
    return groups


class Stages12(_Engine):
    """ZeRO-1 and ZeRO-2 (`stage_1_and_2.py`), and what stays of their offload on the device."""

    _buckets: tuple[int, ...] = ()
    _pending: tuple[int, ...] = ()
    """Parameters of the gradients that wait in the bucket."""
    _oversized: int | None = None
    _partition: int | None = None
    _averaged: int | None = None

    def _initialise(self) -> None:
        """`__init__`: weights become views of flat copies, partitions of which become masters."""
        plan, e = self._plan, self._plan.element_bytes
        made = zip(self._make_weights(), self._weights, strict=True)
        trained = [address for address, weight in made if weight.is_trained]
        for num in self._groups:
            own = self._members(trained, num)
            if not plan.flattens_on_device:
                self._free(*own)
            self._allocate(e * num * plan.num_ranks)
            if plan.flattens_on_device:
                self._free(*own)
            master = self._convert(self._allocate(e * num), num)
            if plan.is_offloaded:
                self._free(master)
        if plan.is_offloaded:
            self._allocate(max(self._trained))
        else:
            self._free(*[self._allocate(plan.master_bytes * num) for num in self._groups])

    def _members(self, trained: list[int], num: int) -> list[int]:
        """The next weights, which make up a group; they leave the list."""
        left, own = num * self._plan.num_ranks, []
        sizes = iter(self._trained[len(self._trained) - len(trained) :])
        while trained and left > 0:
            left -= next(sizes) // self._plan.element_bytes
            own.append(trained.pop(0))
        return own

    def _take(self, weight: int, address: int, *, is_first: bool) -> None:
        if not self._buckets:
            size = self._plan.element_bytes * self._plan.bucket_elements
            self._buckets = tuple(self._allocate(size) for _ in range(self._plan.num_buckets))
        if self._plan.zero_stage == 2:
            self._put_into_bucket(weight, address)
        elif is_first:
            self._gradients[weight] = address
        else:
            self._free(address)

    def _put_into_bucket(self, weight: int, address: int) -> None:
        """`reduce_independent_p_g_buckets_and_remove_grads`."""
        bucket = self._plan.bucket_elements
        num = self._weights[weight].size_bytes // self._plan.element_bytes
        if sum(self._pending) + num > bucket:
            self._reduce()
        if num > bucket:
            self._oversized = address
        else:
            self._free(address)
        self._pending += (num,)

    def _reduce(self) -> None:
        """`reduce_ipg_grads`; the first gradient has `copy_grads_in_partition` make room for all.

        Offloaded, each has its norm taken and is converted on its way to the host.
        """
        plan = self._plan
        if plan.is_offloaded:
            for num in self._pending:
                self._pass_by([_NORM_BYTES * num, plan.master_bytes * num])
        elif self._pending and self._partition is None:
            self._partition = self._allocate(plan.element_bytes * self._owned)
        if self._oversized is not None:
            self._free(self._oversized)
        self._oversized, self._pending = None, ()

    def _end_backward(self, *, is_first: bool, is_last: bool) -> None:
        """`independent_gradient_partition_epilogue`."""
        if self._plan.zero_stage == 1:
            if not is_last:
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
            self._free(self._partition)
        self._partition = None

    def _step(self) -> None:
        """`step`: a flat copy of a group's averaged gradients, in the master's precision then.

        The averaged gradients of all groups lie in one buffer, which goes with the last of them.
        """
        if self._plan.is_offloaded:
            return
        self._add_up_norm()
        for index, num in enumerate(self._groups):
            gradient = self._convert(self._allocate(self._plan.element_bytes * num), num)
            if index == len(self._groups) - 1 and self._averaged is not None:
                self._free(self._averaged)
                self._averaged = None
            if not self._has_states:
                self._make_states(num)
            self._free(gradient)
        self._has_states = True


class Stage3(_Engine):
    """ZeRO-3 on one rank (`stage3.py`), where no weight is gathered."""

    _pending = 0

    def _initialise(self) -> None:
        """Weights go to the host and come back as one; all that was mapped is given back."""
        plan, e, owned = self._plan, self._plan.element_bytes, self._owned
        for weight in self._weights:
            whole = self._allocate(weight.size_bytes)
            self._allocate(weight.size_bytes)
            self._free(whole)
        self._allocator.reset()
        for weight in self._weights:
            if not weight.is_trained:
                self._allocate(weight.size_bytes)
        self._allocate(e * owned)
        first = self._allocate(plan.master_bytes * owned)
        if plan.master_bytes != e:
            self._allocate(plan.master_bytes * owned)
            self._free(first)
        self._pass_by([plan.master_bytes * owned])
        self._allocate(e * plan.bucket_elements)
        self._allocate(e * owned)

    def _take(self, weight: int, address: int, *, is_first: bool) -> None:
        num = self._weights[weight].size_bytes // self._plan.element_bytes
        if self._pending + num > self._plan.bucket_elements:
            self._reduce()
        self._free(address)
        self._pending += num

    def _reduce(self) -> None:
        """`coalesced_collectives.py`, `reduce_scatter_coalesced`: a copy of what is sent."""
        self._pass_by([self._plan.element_bytes * self._pending])
        self._pending = 0

    def _end_backward(self, *, is_first: bool, is_last: bool) -> None:
        self._reduce()

    def _step(self) -> None:
        """`_prepare_fp32_grad_for_sub_group`, one group after the other."""
        self._add_up_norm()
        left = self._owned
        while left > 0:
            num = min(left, self._plan.sub_group_elements)
            left -= num
            gradient = self._convert(self._allocate(self._plan.element_bytes * num), num)
            if not self._has_states:
                self._make_states(num)
            self._free(gradient)
        self._has_states = True


class Stage0(_Engine):
    """No ZeRO, 16-bit weights and an fp32 master of each (`unfused_optimizer.py`)."""

    def _initialise(self) -> None:
        """A first optimizer step over gradients of zeros makes the states."""
        self._make_weights()
        for size, master in zip(self._trained, self._masters, strict=True):
            clone = self._allocate(size)
            self._allocate(master)
            self._free(clone)
        gradients = [self._allocate(size) for size in (*self._trained, *self._masters)]
        for size in self._trained:
            self._make_states(size // self._plan.element_bytes)
        self._free(*gradients)

    @property
    def _masters(self) -> list[int]:
        """Bytes of each parameter in the master's precision."""
        plan = self._plan
        return [plan.master_bytes * (size // plan.element_bytes) for size in self._trained]

    def _take(self, weight: int, address: int, *, is_first: bool) -> None:
        if is_first:
            self._gradients[weight] = address
        else:
            self._free(address)

    def _end_backward(self, *, is_first: bool, is_last: bool) -> None:
        """`engine.py`, `allreduce_bucket`: flat copies, one after the other."""
        if is_last:
            e, most = self._plan.element_bytes, _ALLREDUCE_ELEMENTS
            pieces = range(0, self._num, most)
            self._pass_by([e * min(most, self._num - start) for start in pieces])

    def _step(self) -> None:
        self._pass_by(self._masters)
        self._free(*[self._allocate(size) for size in self._masters])
        self._free(*self._gradients.values())
        self._gradients = {}
