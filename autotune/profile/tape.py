"""The tape: what one forward and backward allocate, free, keep for backward and launch, in order.

A dispatch mode sees every operation below autograd, so what is written down is what the model's
real code does. Does not know what the modules of a model are for: its user says under which label
forward goes on, and backward finds the label again by autograd's own numbers.
"""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Kept", "Kernel", "Moment", "Tape"]

_NO_KERNEL = ("empty", "new_empty", "detach", "alias", "_unsafe_view", "lift", "device", "sym_")
"""Beginnings of the names of operations that launch nothing on a GPU, beside views."""

_NOT_READ = ("new_", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like")
"""Beginnings of the names of operations that are given a tensor for its form alone."""

_ACCUMULATES = 2**63
"""Autograd numbers the nodes that only accumulate a parameter's gradient from here on."""


@dataclass(kw_only=True, slots=True)
class Kept:
    """A storage that autograd keeps, and who reads it in backward."""

    storage: int
    label: Any
    """Where forward was when it was kept."""
    nodes: set[str] = field(default_factory=set)
    """Names of the nodes that read it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """One operation that launches something."""

    name: str
    label: Any
    is_backward: bool
    shapes: tuple[tuple[int, ...], ...]
    """Shapes of the tensors that the operation reads."""
    reads: tuple[int, ...]
    """Storages of the tensors that the operation reads."""
    writes: tuple[int, ...]
    """Storages of the tensors that it makes or changes, where that is known."""
    moved_bytes: int
    """Bytes that the operation reads and writes, each tensor once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """Just after something was allocated or freed."""

    live_bytes: int
    label: Any
    is_backward: bool


class Tape(TorchDispatchMode):
    """Records while it is entered; what is there before must be told of by `know`.

    Args:
        workspace_bytes: what a kernel of that name, given those tensors, takes and gives back.
    """

    def __init__(self, workspace_bytes: Callable[[str, Sequence[torch.Tensor]], int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._workspace_bytes = workspace_bytes
        self.is_backward = False
        self.kernels: list[Kernel] = []
        self.kept: dict[tuple[int, Any], Kept] = {}
        self.made_by: dict[int, Kernel] = {}
        """The first kernel that wrote a storage."""
        self.made_in: list[Any] = []
        """The label under which a storage was first seen, by its number."""
        self.size_bytes: list[int] = []
        """Bytes of each storage, by its number."""
        self._label: Any = None
        self._entered: list[tuple[int, Any]] = []
        self._numbers: dict[int, int] = {}
        self._known: set[int] = set()
        self._events: list[tuple[int, int, Any, bool]] = []
        self._hold: list[Any] = []
        self.has_expert_loop = False
        """Whether code is followed that asks which experts have tokens, and which: every expert
        has as many."""
        self._num_experts = 1

    def know(self, tensors: Iterable[torch.Tensor]) -> None:
        """Leave these out of all that is counted: weights and buffers."""
        for tensor in tensors:
            self._known.add(self.number(tensor))
            self._hold.append(tensor)

    def is_known(self, number: int) -> bool:
        """Whether a storage was there before."""
        return number in self._known

    def number(self, tensor: torch.Tensor) -> int:
        """Number of the tensor's storage; the number of a freed storage is not used again."""
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address not in self._numbers:
            self._numbers[address] = len(self.size_bytes)
            self.size_bytes.append(storage.nbytes())
            self.made_in.append(self.label)
            self._write(self._numbers[address], storage.nbytes())
            weakref.finalize(storage, self._free, address)
        return self._numbers[address]

    def enter(self, label: Any) -> None:
        """Say where forward goes on."""
        self._label = label
        self._entered.append((torch._C._autograd._get_sequence_nr(), label))

    @property
    def label(self) -> Any:
        """Where forward is; in backward, where the forward was that it belongs to."""
        if self.is_backward:
            node = torch._C._current_autograd_node()
            number = _ACCUMULATES if node is None else node._sequence_nr()
            if number < _ACCUMULATES:
                index = bisect_right(self._entered, number, key=lambda entry: entry[0])
                self._label = self._entered[max(index, 1) - 1][1]
        return self._label

    def pack(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Kept | None]:
        """The first of autograd's hooks on what it keeps."""
        number = self.number(tensor)
        kept = None
        if number not in self._known:
            key = (number, self._label)
            kept = self.kept.setdefault(key, Kept(storage=number, label=self._label))
        # Another object over the same storage: a node that held its own output would never go.
        return tensor.detach(), kept

    def unpack(self, packed: tuple[torch.Tensor, Kept | None]) -> torch.Tensor:
        """The second of autograd's hooks."""
        tensor, kept = packed
        node = torch._C._current_autograd_node()
        if kept is not None and node is not None:
            kept.nodes.add(node.name())
        # New again: a gradient that somebody else held would be copied, not taken over.
        return tensor.detach()

    @property
    def position(self) -> int:
        """The number of events so far."""
        return len(self._events)

    def events(self, end: int) -> list[tuple[int, int, Any, bool]]:
        """The first of them: storage, bytes that it takes or gives back, label, direction."""
        return self._events[:end]

    def moments(self, *, without: set[int]) -> list[Moment]:
        """All moments, without the storages of that number."""
        live, moments = 0, []
        for number, change, label, is_backward in self._events:
            if number not in without and number not in self._known:
                live += change
            moments.append(Moment(live_bytes=live, label=label, is_backward=is_backward))
        return moments

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run one operation and write down what it did."""
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if func is torch.ops.aten._local_scalar_dense.default:
            return self._value(given[0])
        if func is torch.ops.aten.equal.default:
            return False
        reads = tuple(self.number(tensor) for tensor in given)
        if self.has_expert_loop and func is torch.ops.aten.nonzero.default:
            result = self._routed(given[0])
        else:
            result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        writes = tuple(self.number(tensor) for tensor in made)
        name = func.name().partition("::")[2].partition(".")[0]
        is_free = func.is_view or not made or name.startswith(_NO_KERNEL)
        if not is_free and (func._schema.is_mutable or not set(writes) <= set(reads)):
            self._launch(name, given, reads, made, writes)
        return result

    def _routed(self, mask: torch.Tensor) -> torch.Tensor:
        """The positions that are true: all experts of a list, or one expert's tokens.

        As transformers' experts ask: of [experts + 1] whether each has any token, the last one
        standing for none; then of [choices, tokens] which are the expert's.
        """
        if mask.dim() == 1:
            self._num_experts = num = mask.numel() - 1
        else:
            num = -(-mask.numel() // self._num_experts)
        return mask.new_empty((num, mask.dim()), dtype=torch.long)

    def _value(self, asked: torch.Tensor) -> bool | int | float:
        """What code is told that asks a tensor for its value."""
        made_by = self.made_by.get(self.number(asked))
        if self.has_expert_loop and made_by is not None and made_by.name == "eq":
            # Whether the expert is the one that stands for none.
            return False
        return _value(asked.dtype)

    def launch(self, name: str, tensors: Sequence[torch.Tensor]) -> None:
        """Write down a kernel that PyTorch knows nothing of, which reads or writes each tensor."""
        numbers = tuple(self.number(tensor) for tensor in tensors)
        self._launch(name, tensors, numbers, (), ())

    def _launch(
        self,
        name: str,
        given: Sequence[torch.Tensor],
        reads: tuple[int, ...],
        made: Sequence[torch.Tensor],
        writes: tuple[int, ...],
    ) -> None:
        kernel = Kernel(
            name=name,
            label=self.label,
            is_backward=self.is_backward,
            shapes=tuple(tuple(tensor.shape) for tensor in given),
            reads=reads,
            writes=writes,
            moved_bytes=sum(map(_moved_bytes, () if name.startswith(_NOT_READ) else given))
            + sum(map(_moved_bytes, made)),
        )
        self.kernels.append(kernel)
        for number in writes:
            self.made_by.setdefault(number, kernel)
        workspace = self._workspace_bytes(name, given)
        if workspace:
            self._write(-1, workspace)
            self._write(-1, -workspace)

    def _free(self, address: int) -> None:
        number = self._numbers.pop(address)
        self._write(number, -self.size_bytes[number])

    def _write(self, number: int, change: int) -> None:
        self._events.append((number, change, self.label, self.is_backward))


def _value(dtype: torch.dtype) -> bool | int | float:
    """What most code is to be told.

    Yes to checks of labels and positions, and one for counts that a loss is divided by: those are
    what such code asks for.
    """
    if dtype is torch.bool:
        return True
    return 1.0 if dtype.is_floating_point else 1


def _moved_bytes(tensor: torch.Tensor) -> int:
    """Bytes that one pass over a tensor moves; what is broadcast is read once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
