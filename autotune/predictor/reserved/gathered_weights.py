"""The whole weights that ZeRO-3 has on the device at each moment, and their addresses.

Follows `runtime/zero/partitioned_param_coordinator.py` of DeepSpeed 0.19.8. A module's weights are
gathered before it runs and released after it. From the third forward on, DeepSpeed knows the order
in which weights are needed: it prefetches later ones, and keeps those that are needed again soon.
Does not know gradients.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from autotune.predictor.reserved.allocator import Allocator
from autotune.predictor.reserved.engine import Part

__all__ = ["GatheredWeights"]

_PREFETCH_ELEMENTS = 50_000_000
_MOST_ELEMENTS = 1_000_000_000
_REUSE_ELEMENTS = 1_000_000_000
_PERSISTENT_ELEMENTS = 100_000
"""Defaults of `runtime/zero/config.py`: elements that are prefetched at once; most elements that
are gathered; the distance within which a weight is kept for its next use; and the size up to which
a weight always stays."""


@dataclass(slots=True)
class _Gathering:
    """Several weights that are gathered into one flat buffer, and then copied out of it."""

    buffer: int | None
    """Address of the flat buffer; None for a single weight, which needs none."""
    weights: Sequence[int]
    num_waiting: int
    """Number of weights that no module has waited for yet."""
    is_complete: bool = False


class GatheredWeights:
    """The weights of one model on one rank.

    Args:
        allocator: the allocator of the stream on which they are gathered.
        elements: elements of each weight.
        element_bytes: bytes of an element.
        free: called with the address of each released weight.
    """

    def __init__(
        self,
        allocator: Allocator,
        elements: Sequence[int],
        element_bytes: int,
        *,
        free: Callable[[int], None],
    ) -> None:
        self._give_back = free
        self._allocator = allocator
        self._elements = elements
        self._element_bytes = element_bytes
        self._buffers: dict[int, int] = {}
        """Address of each whole weight."""
        self._on_their_way: dict[int, _Gathering] = {}
        self._num_gathered = 0
        self._num_forwards = 0
        self._order: list[tuple[int, ...]] = []
        """Weights of each module, in the order in which modules run forward and backward."""
        self._uses: list[tuple[int, int]] = []
        """Each weight that a module needs, with the number of the module's run."""
        self._queue: deque[tuple[int, int]] = deque()
        self._fetched_for: dict[int, int] = {}
        """The latest run that each weight was fetched for."""
        self._step = 0

    @property
    def _knows_order(self) -> bool:
        return self._num_forwards > 1

    def begin_forward(self) -> None:
        """Begin a forward, as `reset_step` does."""
        for weight in list(self._on_their_way):
            self._wait(weight)
            self._free(weight)
        self._num_forwards += 1
        if self._num_forwards == 2:
            self._uses = [
                (weight, step) for step, weights in enumerate(self._order) for weight in weights
            ]
        self._queue = deque(self._uses)
        self._fetched_for = {}
        self._step = self._num_gathered = 0

    def fetch(self, weights: Iterable[int]) -> None:
        """Fetch what a module needs now, and others need next, as `fetch_sub_module` does."""
        needed = tuple(w for w in sorted(weights) if self._elements[w] > _PERSISTENT_ELEMENTS)
        if not self._knows_order:
            self._order.append(needed)
        self._gather([w for w in needed if not self._is_here(w)])
        for weight in needed:
            if weight in self._on_their_way:
                self._wait(weight)
        if self._knows_order:
            self._fetch_ahead(needed)
        self._step += 1

    def release(self, weights: Iterable[int]) -> None:
        """Release weights of a module, as `release_sub_module` does."""
        done = {w for w in weights if w in self._buffers}
        if self._knows_order:
            done -= {w for w in done if self._fetched_for.get(w, -1) > self._step}
            passed, step = 0, self._step
            while done and passed < _REUSE_ELEMENTS and step < len(self._order):
                done -= set(self._order[step])
                passed += sum(self._elements[w] for w in self._order[step])
                step += 1
        for weight in done:
            self._free(weight)

    def release_all(self) -> None:
        """Release all weights before the optimizer step, as `release_and_reset_all` does."""
        for weight in list(self._on_their_way):
            self._wait(weight)
        for weight in list(self._buffers):
            self._free(weight)

    def _is_here(self, weight: int) -> bool:
        return weight in self._buffers or weight in self._on_their_way

    def _fetch_ahead(self, needed: tuple[int, ...]) -> None:
        left = {w for w in needed if self._fetched_for.get(w, -1) < self._step}
        while left and self._queue:
            weight, step = self._queue.popleft()
            self._fetched_for[weight] = step
            left.discard(weight)
        most = min(_MOST_ELEMENTS - self._num_gathered, _PREFETCH_ELEMENTS)
        ahead: dict[int, None] = {}
        num = 0
        while self._queue and num < most:
            weight, step = self._queue.popleft()
            self._fetched_for[weight] = max(step, self._fetched_for.get(weight, -1))
            if not self._is_here(weight) and weight not in ahead:
                ahead[weight] = None
                num += self._elements[weight]
        self._gather(sorted(ahead))

    def _gather(self, weights: Sequence[int]) -> None:
        """Gather weights into one buffer, as `all_gather_coalesced` does."""
        if not weights:
            return
        sizes = [self._element_bytes * self._elements[w] for w in weights]
        self._num_gathered += sum(self._elements[w] for w in weights)
        buffer = self._allocator.allocate(sum(sizes), Part.GATHERED)
        if len(weights) == 1:
            self._buffers[weights[0]] = buffer
            return
        gathering = _Gathering(buffer=buffer, weights=weights, num_waiting=len(weights))
        self._on_their_way |= dict.fromkeys(weights, gathering)

    def _wait(self, weight: int) -> None:
        """Wait for a weight, as `AllGatherCoalescedHandle.wait` does.

        The flat buffer is freed when all its weights were waited for.
        """
        gathering = self._on_their_way.pop(weight)
        if not gathering.is_complete:
            gathering.is_complete = True
            for one in gathering.weights:
                size = self._element_bytes * self._elements[one]
                self._buffers[one] = self._allocator.allocate(size, Part.GATHERED)
        gathering.num_waiting -= 1
        if not gathering.num_waiting and gathering.buffer is not None:
            self._allocator.free(gathering.buffer)

    def _free(self, weight: int) -> None:
        self._give_back(self._buffers.pop(weight))
        self._num_gathered -= self._elements[weight]
