"""A script: what a model allocates and frees in forward and backward, in order, for any batch.

A few of its layers are written down, one group of which stands for all like it. Plain values, to
and from JSON. Does not know how it was made, nor what the training engine allocates around it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any

from autotune.profile.workspaces import Workspace, WorkspaceKind

__all__ = ["AllocationScript", "Event", "MicroStep", "Repeat", "Weight"]


_LEFT_OUT = -1
"""In the place of a storage that is too small to be told of."""


class Event(IntEnum):
    """What happens; the first three to one storage."""

    ALLOCATE = 0
    FREE = 1
    READY = 2
    """A weight's gradient is whole, and the training engine takes it."""
    WORK = 3
    """A kernel takes a workspace and gives it back."""
    MATMUL = 4
    """The first matrix product of forward or of backward."""
    FETCH = 5
    """A module is about to need its weights, in forward or in backward."""
    RELEASE = 6
    """It has done with them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Weight:
    """A parameter."""

    size_bytes: int
    is_trained: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Repeat:
    """Where the group of layers is that stands for more such groups; ends are behind it."""

    forward: tuple[int, int]
    backward: tuple[int, int]
    weights: tuple[int, int]
    before: Mapping[int, int]
    """Each storage of the group, and the storage in its place in the previous group."""
    after: Mapping[int, int]
    """Each storage of the group, and the storage in its place in the next group."""
    times: int
    """Number of groups beyond the one that is written down."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroStep:
    """One forward and backward of the whole model, for one size of batch."""

    events: list[tuple[int, int, int]]
    """What happens, to which storage, and bytes: of a storage or a workspace; of a gradient that
    is ready, the number of its weight; of a module, its number."""
    weights: tuple[Weight, ...]
    modules: tuple[tuple[int, ...], ...] = ()
    """Numbers of the weights that each module needs; of those that are fetched and released."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AllocationScript:
    """Allocations of one training step of one model, trained in one way."""

    events: tuple[tuple[int, int], ...]
    """What happens, and to which storage; of a workspace or a module, which."""
    sizes: tuple[tuple[int, int], ...]
    """Bytes of each storage in any batch, and for each sample."""
    workspaces: tuple[Workspace, ...]
    weights: tuple[Weight, ...]
    ready: Mapping[int, int]
    """The storage of a gradient to the number of its weight."""
    repeat: Repeat | None
    modules: tuple[tuple[int, ...], ...] = ()
    """Numbers of the weights of each module that fetches them."""

    def micro_step(self, num_samples: int, *, least_bytes: int = 0) -> MicroStep:
        """Write it out for a batch, without the storages of up to `least_bytes`."""
        return _Writer(self, num_samples, least_bytes).micro_step()

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; `from_dict` reads it back."""
        record = asdict(self)
        record["ready"] = list(self.ready.items())
        if self.repeat:
            record["repeat"]["before"] = list(self.repeat.before.items())
            record["repeat"]["after"] = list(self.repeat.after.items())
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> AllocationScript:
        """Read back what `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is no such record.
        """
        return cls(
            events=tuple((kind, which) for kind, which in record["events"]),
            sizes=tuple((fixed, of_sample) for fixed, of_sample in record["sizes"]),
            workspaces=tuple(
                Workspace(**{**one, "kind": WorkspaceKind(one["kind"])})
                for one in record["workspaces"]
            ),
            weights=tuple(Weight(**one) for one in record["weights"]),
            ready=dict(record["ready"]),
            repeat=_repeat(record["repeat"]) if record["repeat"] else None,
            modules=tuple(tuple(weights) for weights in record["modules"]),
        )


def _repeat(record: Mapping[str, Any]) -> Repeat:
    ranges = {name: tuple(record[name]) for name in ("forward", "backward", "weights")}
    maps = {name: dict(record[name]) for name in ("before", "after")}
    return Repeat(**{**record, **ranges, **maps})


class _Writer:
    """Writes a script out; storages of each copy of the group get numbers of their own."""

    def __init__(self, script: AllocationScript, num_samples: int, least_bytes: int) -> None:
        self._script = script
        self._num_samples = num_samples
        self._least_bytes = least_bytes
        self._sizes = [fixed + num_samples * more for fixed, more in script.sizes]
        self._stride = len(script.sizes)
        self._events: list[tuple[int, int, int]] = []
        self._modules: dict[tuple[int, ...], int] = {}
        """Numbers by weights, in the whole model."""

    def micro_step(self) -> MicroStep:
        script, repeat = self._script, self._script.repeat
        if repeat is None:
            self._write(0, len(script.events), {}, 0)
            return self._written(script.weights)
        last = repeat.times
        own = list(repeat.before)
        behind = self._shift(own, last)
        self._write(0, repeat.forward[0], {}, 0)
        for copy in range(last + 1):
            self._write(*repeat.forward, self._names(copy), copy)
        self._write(repeat.forward[1], repeat.backward[0], behind, last)
        for copy in reversed(range(last + 1)):
            self._write(*repeat.backward, self._names(copy), copy)
        self._write(repeat.backward[1], len(script.events), {}, last)
        start, end = repeat.weights
        weights = script.weights
        group = weights[start:end]
        return self._written(weights[:end] + group * last + weights[end:])

    def _written(self, weights: tuple[Weight, ...]) -> MicroStep:
        return MicroStep(events=self._events, weights=weights, modules=tuple(self._modules))

    def _shift(self, storages: list[int], copy: int) -> dict[int, int]:
        return {storage: storage + copy * self._stride for storage in storages}

    def _names(self, copy: int) -> dict[int, int]:
        """Numbers of the storages that a copy of the group sees."""
        repeat = self._script.repeat
        assert repeat is not None
        names = self._shift(list(repeat.before), copy)
        if copy:
            names |= {
                other: own + (copy - 1) * self._stride for own, other in repeat.before.items()
            }
        if copy < repeat.times:
            names |= {
                other: own + (copy + 1) * self._stride for own, other in repeat.after.items()
            }
        return names

    def _write(self, start: int, end: int, names: Mapping[int, int], copy: int) -> None:
        sizes, least, events = self._sizes, self._least_bytes, self._events
        for kind, which in self._script.events[start:end]:
            if kind <= Event.READY:
                size = sizes[which]
                if kind == Event.READY:
                    name = names.get(which, which) if size > least else _LEFT_OUT
                    weight = self._weight(self._script.ready[which], copy)
                    events.append((kind, name, weight))
                elif size > least:
                    events.append((kind, names.get(which, which), size))
            elif kind == Event.WORK:
                size = self._script.workspaces[which].size_bytes(self._num_samples)
                if size > least:
                    events.append((kind, _LEFT_OUT, size))
            elif kind == Event.MATMUL:
                events.append((kind, _LEFT_OUT, 0))
            else:
                own = tuple(self._weight(one, copy) for one in self._script.modules[which])
                number = self._modules.setdefault(own, len(self._modules))
                events.append((kind, _LEFT_OUT, number))

    def _weight(self, number: int, copy: int) -> int:
        """The number of a weight in the whole model."""
        repeat = self._script.repeat
        if repeat is None or number < repeat.weights[0]:
            return number
        start, end = repeat.weights
        return number + (copy if number < end else repeat.times) * (end - start)
