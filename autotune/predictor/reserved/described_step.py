"""Forward and backward with described activations, for kernels that are not installed here.

Events of the model's weights are kept: which module needs them when, and the order in which their
gradients become complete. Blocks with the counted bytes of a token are put between them. Does not
know the training engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count

from autotune.predictor.memory.activations import TokenBytes
from autotune.profile.script import Event, MicroStep

__all__ = ["Described", "described"]

_Told = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Described:
    """The activations of a micro-batch, as counted bytes."""

    token: TokenBytes
    num_tokens: int
    num_layers: int
    checkpoint_interval: int
    """Number of layers that keep only the first one's input and are recomputed; 0: none."""
    head_gradient_bytes: int
    """Bytes of the output projection's gradient if the loss computes it; else 0."""

    def kept_bytes(self, layer: int) -> int:
        """Bytes that one layer keeps from forward until its backward."""
        if not self.checkpoint_interval:
            return self.num_tokens * self.token.layer
        is_first = layer % self.checkpoint_interval == 0
        return self.num_tokens * self.token.layer_input * is_first

    def again_bytes(self, layer: int) -> int:
        """Bytes that are recomputed when backward reaches a layer, and held until its end."""
        span = min(self.checkpoint_interval, self.num_layers)
        is_last = layer == self.num_layers - 1 or (layer + 1) % max(span, 1) == 0
        return self.num_tokens * self.token.layer * span * is_last if span else 0


def described(frame: MicroStep, what: Described) -> MicroStep:
    """A micro-step with the events of a model's weights, and with described activations.

    Args:
        frame: the events of weights and matrix products only, of the model with other kernels.
        what: the activations.
    """
    products = [at for at, told in enumerate(frame.events) if told[0] == Event.MATMUL]
    turn = products[1] if len(products) > 1 else len(frame.events)
    weaver = _Weaver(what)
    events = [
        *weaver.forward(frame.events[:turn]),
        *frame.events[turn : turn + 1],
        *weaver.backward(frame.events[turn + 1 :]),
    ]
    return replace(frame, events=events)


class _Weaver:
    """Puts blocks between the events of weights."""

    def __init__(self, what: Described) -> None:
        self._what = what
        self._numbers = count()
        self._kept: dict[int, _Told] = {}
        self._head: list[_Told] = []

    def forward(self, events: list[_Told]) -> Iterator[_Told]:
        """Spread the bytes that layers keep evenly over the events; then head and loss."""
        what = self._what
        layer = 0
        for at, event in enumerate(events):
            yield event
            while layer < what.num_layers and layer * len(events) <= at * what.num_layers:
                yield from self._keep(layer)
                layer += 1
        for rest in range(layer, what.num_layers):
            yield from self._keep(rest)
        self._head = [
            self._block(what.num_tokens * what.token.head),
            self._block(what.head_gradient_bytes),
        ]
        loss = self._block(what.num_tokens * what.token.loss)
        yield from (*self._head, loss, _freed(loss))

    def backward(self, events: list[_Told]) -> Iterator[_Told]:
        """Free the blocks of layers as gradients become complete, the last layer first."""
        num_ready = sum(kind == Event.READY for kind, _, _ in events)
        num_layers, seen = self._what.num_layers, 0
        again, at = self._begin(num_layers - 1)
        yield from again
        yield from map(_freed, self._head)
        for event in events:
            yield event
            seen += event[0] == Event.READY
            while at > 0 and seen * num_layers >= (num_layers - at) * num_ready:
                yield from self._end(at)
                again, at = self._begin(at - 1)
                yield from again
        while at > 0:
            yield from self._end(at)
            again, at = self._begin(at - 1)
            yield from again
        yield from self._end(0)

    def _keep(self, layer: int) -> Iterator[_Told]:
        self._kept[layer] = self._block(self._what.kept_bytes(layer))
        yield self._kept[layer]

    def _begin(self, layer: int) -> tuple[list[_Told], int]:
        """Blocks that a layer's backward needs beside those that forward kept."""
        what = self._what
        again = what.again_bytes(layer)
        events = []
        if again:
            self._again = self._block(again)
            events.append(self._again)
        beyond = what.num_tokens * (what.token.layer_backward + what.token.recomputed)
        return [*events, (Event.WORK, -1, beyond)], layer

    def _end(self, layer: int) -> Iterator[_Told]:
        interval = self._what.checkpoint_interval
        if interval and layer % interval == 0:
            yield _freed(self._again)
        yield _freed(self._kept.pop(layer))

    def _block(self, num_bytes: int) -> _Told:
        return Event.ALLOCATE, next(self._numbers), num_bytes


def _freed(block: _Told) -> _Told:
    return Event.FREE, block[1], 0
