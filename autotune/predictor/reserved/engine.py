"""The allocations that DeepSpeed makes around forward and backward, in order, for one rank.

Read from DeepSpeed 0.19.8, and compared with the allocations of trials on one H100. This file has
what all ZeRO stages have in common; each stage has a file of its own. Does not know what a model's
own code allocates: a `MicroStep` says it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from autotune.predictor.memory.precision import NORM_BYTES
from autotune.predictor.reserved.allocator import Allocator
from autotune.profile.script import Event, MicroStep

__all__ = ["Engine", "EnginePlan", "Part"]


class Part(StrEnum):
    """The purpose of a block, by the names of `memory/peak.py`."""

    WEIGHTS = "weights"
    FLATTENED = "flattened weights"
    MASTERS = "master weights"
    STATES = "optimizer states"
    GRADIENTS = "gradients"
    BUCKETS = "gradient buckets"
    ACTIVATIONS = "activations"
    LOGITS = "logits"
    GATHERED = "gathered weights"
    OFFLOAD = "offload buffers"
    WORKSPACE = "workspace"


_CUBLAS_BYTES = 32 * 2**20
"""Workspace of cuBLAS for one thread on Hopper; forward and backward are two threads
(`aten/src/ATen/cuda/CublasHandlePool.cpp`)."""

_MICRO_STEPS = 2
"""Micro-steps that are simulated: the first keeps its gradients, all others add to them."""


_BLOCK = 64
_ABSMAX = 4
"""A 4-bit block's elements, and bytes of its absolute maximum (bitsandbytes)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EnginePlan:
    """The settings of the engine that a strategy needs."""

    zero_stage: int
    num_ranks: int
    """Ranks over which ZeRO divides."""
    accumulation: int
    element_bytes: int
    master_bytes: int
    group_elements: int
    """Most elements in a group of the optimizer: ZeRO makes one flat tensor of each group."""
    state_bytes: tuple[float, ...]
    """Bytes for each trained parameter, one number for each state tensor on the device."""
    bucket_elements: int
    reduce_bytes: int
    """Bytes of an element in communication."""
    overlaps: bool
    """Whether gradients are reduced during backward, on a stream of their own."""
    sub_group_elements: int
    """Elements of a sub-group of ZeRO-3, which are updated at once."""
    is_offloaded: bool
    """Whether the optimizer is on the host."""
    tied_bytes: int
    """Bytes of an output projection that is created before it shares the embedding's weights."""
    flattens_on_device: bool
    """Whether weights and a copy of them fit the device."""
    logits_bytes: int
    """Bytes of the whole logits of a micro-batch; 0 if they are computed in pieces."""
    packed_sizes: frozenset[int] = frozenset()
    """Bytes of the weights that are kept in 4 bit, as they would be whole."""


class Engine:
    """The training engine, as far as all ZeRO stages are alike."""

    def __init__(
        self,
        allocator: Allocator,
        plan: EnginePlan,
        micro_step: MicroStep,
        first: MicroStep | None = None,
    ) -> None:
        """Build the engine; `first` is the very first micro-step, if it differs."""
        self._allocator = allocator
        self._allocate = allocator.allocate
        self._plan = plan
        self._following = micro_step
        self._first = first or micro_step
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
        self._unpacked: dict[int, int] = {}
        """Address of each 4-bit weight that is whole for the moment."""
        self._is_first = self._is_last = True
        """Whether the micro-step is the first, and the last, of its step."""
        self._prepare()

    def _prepare(self) -> None:
        """Set up what only one stage has."""

    def run(self, most_steps: int) -> None:
        """Run initialisation, and optimizer steps until one needs no more memory than before.

        The first step creates the states, so the second one is the first typical step.
        """
        self._allocator.moment = "initialisation"
        self._initialise()
        num_micro_steps = min(self._plan.accumulation, _MICRO_STEPS)
        for step in range(most_steps):
            before = self._allocator.peak_reserved_bytes
            for index in range(num_micro_steps):
                self._is_first, self._is_last = index == 0, index == num_micro_steps - 1
                self._micro_step(self._following if step or index else self._first)
                self._allocator.moment = "end of backward"
                self._end_backward()
            self._allocator.moment = "optimizer step"
            self._step()
            if step and self._allocator.peak_reserved_bytes == before:
                return

    def _initialise(self) -> None:
        raise NotImplementedError

    def _take(self, weight: int, address: int) -> None:
        """Take a complete gradient."""
        raise NotImplementedError

    def _fetch(self, weights: tuple[int, ...]) -> None:
        """A module is about to need its weights: those in 4 bit are unpacked.

        bitsandbytes, `functional.py`, `dequantize_4bit`: first the absolute maxima, in fp32.
        """
        for weight in filter(self._is_packed, weights):
            if weight not in self._unpacked:
                size = self._weights[weight].size_bytes
                maxima = self._allocate(_ABSMAX * self._elements(weight) // _BLOCK, Part.WORKSPACE)
                self._unpacked[weight] = self._allocate(size, Part.WORKSPACE)
                self._free(maxima)

    def _release(self, weights: tuple[int, ...]) -> None:
        """A module has finished with its weights."""
        for weight in weights:
            if weight in self._unpacked:
                self._free(self._unpacked.pop(weight))

    def _is_packed(self, weight: int) -> bool:
        made = self._weights[weight]
        return not made.is_trained and made.size_bytes in self._plan.packed_sizes

    def _end_backward(self) -> None:
        raise NotImplementedError

    def _step(self) -> None:
        raise NotImplementedError

    def _micro_step(self, micro_step: MicroStep) -> None:
        allocate, free = self._allocator.allocate, self._allocator.free
        live: dict[int, int] = {}
        logits_bytes = self._plan.logits_bytes or float("inf")
        self._allocator.moment, num_matmuls = "forward and loss", 0
        for kind, which, told in micro_step.events:
            if kind == Event.ALLOCATE:
                part = Part.LOGITS if told >= logits_bytes else Part.ACTIVATIONS
                live[which] = allocate(told, part)
            elif kind == Event.FREE:
                free(live.pop(which))
            elif kind == Event.READY:
                address = live.pop(which, None)
                if address is None:
                    address = allocate(self._weights[told].size_bytes)
                self._allocator.becomes(address, Part.GRADIENTS)
                self._take(told, address)
            elif kind == Event.WORK:
                free(allocate(told, Part.WORKSPACE))
            elif kind == Event.FETCH:
                self._fetch(micro_step.modules[told])
            elif kind == Event.RELEASE:
                self._release(micro_step.modules[told])
            else:
                self._start_pass(num_matmuls)
                num_matmuls += 1
        self._free(*live.values())

    def _start_pass(self, number: int) -> None:
        """Begin forward or backward with its first product: each has a thread of its own."""
        if number:
            self._allocator.moment = "backward"
        if self._num_workspaces < 2:
            self._allocate(_CUBLAS_BYTES, Part.WORKSPACE)
            self._num_workspaces += 1

    def _elements(self, weight: int) -> int:
        return self._weights[weight].size_bytes // self._plan.element_bytes

    def _free(self, *addresses: int) -> None:
        for address in addresses:
            self._allocator.free(address)

    def _pass_by(self, sizes: Sequence[int], part: Part) -> None:
        """Allocate and free blocks one after the other."""
        for size in sizes:
            self._free(self._allocate(size, part))

    def _make_weights(self) -> list[int]:
        weights = [
            self._pack(weight.size_bytes)
            if self._is_packed(number)
            else self._allocate(weight.size_bytes, Part.WEIGHTS)
            for number, weight in enumerate(self._weights)
        ]
        self._pass_by([self._plan.tied_bytes], Part.WEIGHTS)
        return weights

    def _pack(self, size_bytes: int) -> int:
        """Make a weight whole, and keep it in 4 bit.

        bitsandbytes, `functional.py`, `quantize_4bit`: maxima in fp32, which are in 8 bit later.
        """
        num = size_bytes // self._plan.element_bytes
        whole = self._allocate(size_bytes, Part.WEIGHTS)
        maxima = self._allocate(_ABSMAX * num // _BLOCK, Part.WEIGHTS)
        packed = self._allocate(num // 2, Part.WEIGHTS)
        self._allocate(num // _BLOCK, Part.WEIGHTS)
        self._free(maxima, whole)
        return packed

    def _convert(self, address: int, num: int, part: Part) -> int:
        """Replace a tensor by a copy in the master's precision, if that is another."""
        if self._plan.master_bytes == self._plan.element_bytes:
            return address
        converted = self._allocate(self._plan.master_bytes * num, part)
        self._free(address)
        return converted

    def _make_states(self, num: int) -> None:
        """Allocate the state tensors of one flat group, one after the other."""
        for size in self._plan.state_bytes:
            self._allocate(int(size * num), Part.STATES)

    def _add_up_norm(self) -> None:
        e = self._plan.element_bytes
        self._pass_by([NORM_BYTES * (size // e) for size in self._trained], Part.GRADIENTS)


def _divided(trained: Sequence[int], element_bytes: int, plan: EnginePlan) -> list[int]:
    """Parameters of each group of the optimizer (`techniques/optimizers.py`, `_divided`)."""
    groups = [0]
    for size in trained:
        num = size // element_bytes
        if groups[-1] and groups[-1] + num > plan.group_elements:
            groups.append(0)
        groups[-1] += num
    return groups
