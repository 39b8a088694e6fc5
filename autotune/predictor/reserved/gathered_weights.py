"""The whole weights that ZeRO-3 has on the device at each moment, and where they lie.

Follows `runtime/zero/partitioned_param_coordinator.py` of DeepSpeed 0.19.8: a module's weights are
gathered before it runs and released behind it; from the third forward on, the order is known in
which they are needed, so that later ones are gathered ahead, and those stay that are needed again
soon. Does not know gradients.
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
"""Defaults of `runtime/zero/config.py`: gathered ahead at once, gathered at most, the distance
within which a weight is kept for its next use, and the largest of those that always stay."""


@dataclass(slots=True)
class _Gathering:
    """Several weights on their way in one flat buffer, out of which each is copied."""

    buffer: int | None
    """Address of the flat buffer; None for a single weight, whose buffer is its own."""
    weights: Sequence[int]
    num_waiting: int
    """Number of the weights whose modules have not asked for them yet."""
    is_complete: bool = False


class GatheredWeights:
    """The weights of one model on one rank.

    Args:
        allocator: of the stream on which they are gathered.
        elements: of each weight.
        element_bytes: of all.
        free: is told the addresses of weights that are released.
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
        """Each weight that a module needs, and when."""
        self._queue: deque[tuple[int, int]] = deque()
        self._fetched_for: dict[int, int] = {}
        """The latest use that a weight was fetched for."""
        self._step = 0

    @property
    def _knows_order(self) -> bool:
        return self._num_forwards > 1

    def begin_forward(self) -> None:
        """`reset_step`."""
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
        """`fetch_sub_module`: what a module needs now, and what others need next."""
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
        """`release_sub_module`."""
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
        """`release_and_reset_all`, before the optimizer's step."""
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
        """`all_gather_coalesced`."""
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
        """`AllGatherCoalescedHandle.wait`: the flat buffer lives until all have asked for it."""
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
