"""One forward and backward on the tape, as events: allocated, freed, ready, and where.

Knows where layers begin and end, and which groups of them do the same. Does not know how the model
was built, nor what it takes at other sizes of batch.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from autotune.profile.gpu_kernels import attention_workspace_bytes
from autotune.profile.liger import as_on_a_gpu, launches_told_to
from autotune.profile.script import Event, Repeat, Weight
from autotune.profile.tape import Tape
from autotune.profile.workspaces import WorkspaceKind
from autotune.techniques.blocks import decoder_layers

__all__ = ["Run"]

_AHEAD, _BEHIND = -1, 2**30
"""Labels of what comes before the layers, and of what comes after them."""
_MATMULS = ("mm", "addmm", "bmm", "baddbmm")
_ROTARY = "RotaryEmbedding"
"""End of the names of classes whose angles some versions of transformers take by a product."""


@dataclass(frozen=True, slots=True)
class _Marked:
    """The end of a span of the tape, or something in it that is no allocation."""

    position: int
    kind: Event | None
    number: int


class _ToldTape(Tape):
    """Tells of each kernel what it is given and what it makes."""

    def __init__(self, listener: Callable[..., None]) -> None:
        super().__init__(attention_workspace_bytes)
        self._listener = listener

    def _launch(self, name: str, given: Any, reads: Any, made: Any, writes: Any) -> None:
        self._listener(name, given, made)
        super()._launch(name, given, reads, made, writes)


class Run:
    """One forward and backward on the tape.

    Args:
        model: with its techniques on.
        num_layers: of it.
        batch: the model's arguments, each tensor [samples, tokens].
        gathers_weights: whether modules fetch their weights and release them.
        has_expert_loop: whether routed experts are computed one after the other.
    """

    def __init__(
        self,
        model: nn.Module,
        num_layers: int,
        batch: Mapping[str, torch.Tensor],
        *,
        gathers_weights: bool = False,
        has_expert_loop: bool = False,
    ) -> None:
        self.samples = len(batch["input_ids"])
        self._is_reentrant = gathers_weights
        self._num_layers = num_layers
        self.tape = _ToldTape(self._launched)
        self.tape.has_expert_loop = has_expert_loop
        self.tape.enter(_AHEAD)
        self.workspaces: list[tuple[WorkspaceKind, int, int, int]] = []
        self._marks: list[_Marked] = []
        self._sums: list[tuple[int, int, int]] = []
        self._first: dict[int, weakref.ref[torch.Tensor]] = {}
        """The first tensor over each storage: all others are views."""
        self._starts: dict[int, int] = {}
        self._has_matmul = {False: False, True: False}
        self._layer_of: dict[int, int] = {}
        weights = list(model.parameters())
        self.weights = tuple(
            Weight(size_bytes=w.numel() * w.element_size(), is_trained=w.requires_grad)
            for w in weights
        )
        self.ready: dict[int, int] = {}
        self.modules: list[tuple[int, ...]] = []
        self.tape.know([*weights, *model.buffers()])
        hooks = [
            weight.register_post_accumulate_grad_hook(self._on_gradient(number))
            for number, weight in enumerate(weights)
            if weight.requires_grad
        ]
        numbers = {id(weight): number for number, weight in enumerate(weights)}
        for index, layer in enumerate(decoder_layers(model, num_layers)):
            hooks.append(layer.register_forward_pre_hook(self._on_layer(index), prepend=True))
            self._layer_of |= {numbers[id(weight)]: index for weight in layer.parameters()}
        hooks.append(layer.register_forward_hook(self._on_layer(num_layers)))
        hooks += [
            module.register_forward_hook(lambda *_: self._on_matmul())
            for module in model.modules()
            if type(module).__name__.endswith(_ROTARY)
        ]
        if gathers_weights:
            hooks += self._watch_modules(model, numbers)
        self._follow(model, batch)
        for hook in hooks:
            hook.remove()
        for weight in weights:
            weight.grad = None
        self._write()

    def _follow(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> None:
        self.tape.know(batch.values())
        with (
            warnings.catch_warnings(),
            launches_told_to(self.tape.launch),
            as_on_a_gpu(),
            self.tape,
        ):
            # That the ids an embedding is given have no gradient.
            warnings.filterwarnings("ignore", "Full backward hook is firing")
            loss = model(**batch, use_cache=False).loss
            self.tape.is_backward = True
            loss.backward()
        self._end = self.tape.position

    def _on_layer(self, index: int) -> Any:
        label = index if index < self._num_layers else _BEHIND

        def hook(*_: Any) -> None:
            if not self.tape.is_backward:
                self._starts[index] = self.tape.position
                self.tape.enter(label)
            elif self._is_reentrant and label != _BEHIND:
                # What is recomputed has a backward of its own.
                self.tape.enter(label)

        return hook

    def _watch_modules(self, model: nn.Module, numbers: Mapping[int, int]) -> list[Any]:
        """Hooks where ZeRO-3 has its own (`parameter_offload.py`), of modules with weights."""
        hooks: list[Any] = []
        for module in model.modules():
            weights = tuple(numbers[id(weight)] for weight in module.parameters(recurse=False))
            fetch, release = (
                self._on_module(kind, len(self.modules)) for kind in (Event.FETCH, Event.RELEASE)
            )
            self.modules.append(weights)
            hooks.append(module.register_forward_pre_hook(fetch, prepend=True))
            hooks.append(module.register_forward_hook(release))
            if weights:
                hooks.append(module.register_full_backward_pre_hook(fetch))
            if weights and not isinstance(module, nn.Embedding):
                # Token ids have no gradient that could say when it is done.
                hooks.append(module.register_full_backward_hook(release))
        return hooks

    def _on_module(self, kind: Event, number: int) -> Any:
        return lambda *_: self._mark(kind, number)

    def _on_gradient(self, number: int) -> Any:
        def hook(weight: nn.Parameter) -> None:
            gradient = weight.grad
            assert gradient is not None
            storage = self.tape.number(gradient)
            self.ready[storage] = number
            self._mark(Event.READY, storage)

        return hook

    def _mark(self, kind: Event, number: int) -> None:
        self._marks.append(_Marked(self.tape.position, kind, number))

    def _on_matmul(self) -> None:
        if not self._has_matmul[self.tape.is_backward]:
            self._has_matmul[self.tape.is_backward] = True
            self._mark(Event.MATMUL, -1)

    def _launched(
        self, name: str, given: Sequence[torch.Tensor], made: Sequence[torch.Tensor]
    ) -> None:
        """Mark what takes a workspace that does not grow with the batch, and sums of gradients."""
        tape = self.tape
        for tensor in made:
            self._first.setdefault(tape.number(tensor), weakref.ref(tensor))
        if name in _MATMULS:
            self._on_matmul()
        elif name == "add" and tape.is_backward and not torch.is_grad_enabled():
            before = given[0]
            maker = self._first.get(tape.number(before))
            if maker is not None and maker() is before:
                self._sums.append((tape.position, tape.number(made[0]), tape.number(before)))
        elif name == "embedding_dense_backward":
            rows, width = made[0].shape
            self._work(WorkspaceKind.SORT, rows, width, given[1].numel())
        elif name == "sum" and made[0].numel() == made[0].shape[-1:].numel() > 1:
            width = made[0].numel()
            self._work(WorkspaceKind.SUM, 0, width, given[0].numel() // width)

    def _work(self, kind: WorkspaceKind, rows: int, width: int, tokens: int) -> None:
        self._mark(Event.WORK, len(self.workspaces))
        self.workspaces.append((kind, rows, width, tokens))

    def _write(self) -> None:
        """Merge marks into the tape's events; a workspace becomes a storage of its own."""
        self.events: list[tuple[int, int]] = []
        self.sizes = list(self.tape.size_bytes)
        self.positions: list[int] = []
        self.labels: list[tuple[int, bool]] = []
        marks = iter([*self._marks, _Marked(self._end + 1, None, -1)])
        mark = next(marks)
        for position, (number, change, label, is_backward) in enumerate(
            self.tape.events(self._end)
        ):
            while mark.position <= position:
                assert mark.kind is not None
                self._add(mark.kind, mark.number, label, is_backward)
                mark = next(marks)
            self.positions.append(len(self.events))
            if number < 0:
                if change > 0:
                    self.sizes.append(change)
                self._add(Event(change < 0), len(self.sizes) - 1, label, is_backward)
            elif not self.tape.is_known(number):
                self._add(Event(change < 0), number, label, is_backward)
        while mark.kind is not None:
            self._add(mark.kind, mark.number, -1, True)
            mark = next(marks)
        self.positions.append(len(self.events))
        self._add_in_place()

    def _add_in_place(self) -> None:
        """Leave out what autograd does not allocate where tensors have memory.

        `torch/csrc/autograd/input_buffer.cpp`, `accumulate`: a gradient is added into the one
        that was there before, where nobody else holds that and it is no view. Of tensors without
        memory a new one is made.
        """
        names: dict[int, int] = {}
        dropped: set[int] = set()
        for on_tape, total, before in self._sums:
            position = self.positions[on_tape]
            made = self._last(position, (int(Event.ALLOCATE), total))
            freed = self._freed_at_once(position, before)
            if made is not None and freed is not None and self.sizes[total] == self.sizes[before]:
                dropped |= {made, freed}
                names[total] = names.get(before, before)
        self._rename(names, dropped)

    def _freed_at_once(self, position: int, number: int) -> int | None:
        """Where a storage is freed, if that is before anything else is allocated."""
        for index in range(position, len(self.events)):
            if self.events[index] == (Event.FREE, number):
                return index
            if self.events[index][0] == Event.ALLOCATE:
                return None
        return None

    def _last(self, position: int, event: tuple[int, int]) -> int | None:
        """Where an event is, shortly before a position."""
        for index in range(position - 1, max(-1, position - 4), -1):
            if self.events[index] == event:
                return index
        return None

    def _rename(self, names: Mapping[int, int], dropped: set[int]) -> None:
        """Drop events, and have storages under other names; positions move along."""
        kept = [index for index in range(len(self.events)) if index not in dropped]
        ahead = [0, *accumulate(int(index not in dropped) for index in range(len(self.events)))]
        self.positions = [ahead[position] for position in self.positions]
        self.labels = [self.labels[index] for index in kept]
        self.events = [
            (kind, names.get(number, number) if kind <= Event.READY else number)
            for kind, number in (self.events[index] for index in kept)
        ]
        self.ready = {names.get(number, number): of for number, of in self.ready.items()}

    def _add(self, kind: Event, number: int, label: int, is_backward: bool) -> None:
        self.events.append((int(kind), number))
        self.labels.append((label, is_backward))

    def repeat(self, group: int, times: int) -> Repeat | None:
        """The middle group of layers, if those around it do the same; None if they do not."""
        num_groups = self._num_layers // group
        middle = num_groups // 2
        groups = [self._spans(index, group) for index in range(middle - 1, middle + 2)]
        made = [self._made(spans) for spans in groups]
        if len({tuple(self._sizes_of(one)) for one in made}) > 1:
            return None
        before, own, after = made
        repeat = Repeat(
            forward=groups[1][0],
            backward=groups[1][1],
            weights=self._weights_of(middle, group),
            before=dict(zip(own, before, strict=True)),
            after=dict(zip(own, after, strict=True)),
            times=times,
        )
        return repeat if self._is_closed(repeat) else None

    def _spans(self, index: int, group: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Start and end of a group's events in forward, and in backward."""
        first, behind = index * group, (index + 1) * group
        forward = self.positions[self._starts[first]], self.positions[self._starts[behind]]
        backward = [
            position
            for position, (label, is_backward) in enumerate(self.labels)
            if is_backward and first <= label < behind
        ]
        before = [
            position
            for position, (label, is_backward) in enumerate(self.labels)
            if is_backward and label < first and position > backward[0]
        ]
        return forward, (backward[0], before[0] if before else len(self.events))

    def _made(self, spans: Sequence[tuple[int, int]]) -> list[int]:
        return [
            number
            for start, end in spans
            for kind, number in self.events[start:end]
            if kind == Event.ALLOCATE
        ]

    def _sizes_of(self, storages: Sequence[int]) -> Iterator[int]:
        return (self.sizes[storage] for storage in storages)

    def _weights_of(self, index: int, group: int) -> tuple[int, int]:
        own = [n for n, layer in self._layer_of.items() if layer // group == index]
        return min(own), max(own) + 1

    def _is_closed(self, repeat: Repeat) -> bool:
        """Whether the group touches nothing but what it and those around it have made."""
        near = {*repeat.before, *repeat.before.values(), *repeat.after.values()}
        return all(
            number in near
            for start, end in (repeat.forward, repeat.backward)
            for kind, number in self.events[start:end]
            if kind <= Event.READY
        )
