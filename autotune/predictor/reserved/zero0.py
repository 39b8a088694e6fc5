"""The allocations around forward and backward of one rank without ZeRO.

Read from `runtime/fp16/unfused_optimizer.py` of DeepSpeed 0.19.8. Does not know a model's code.
"""

from __future__ import annotations

from autotune.predictor.reserved.engine import Engine, Part

__all__ = ["Stage0"]

_ALLREDUCE_ELEMENTS = 500_000_000
"""Most elements in the engine's flat copy without ZeRO (`engine.py`,
`buffered_allreduce_fallback`)."""


class Stage0(Engine):
    """Training without ZeRO: 16-bit weights, each with an fp32 master."""

    def _initialise(self) -> None:
        """Create the states by a first optimizer step with gradients of zeros."""
        self._make_weights()
        for size, master in zip(self._trained, self._masters, strict=True):
            clone = self._allocate(size, Part.MASTERS)
            self._allocate(master, Part.MASTERS)
            self._free(clone)
        sizes = (*self._trained, *self._masters)
        gradients = [self._allocate(size, Part.GRADIENTS) for size in sizes]
        for size in self._trained:
            self._make_states(size // self._plan.element_bytes)
        self._free(*gradients)

    @property
    def _masters(self) -> list[int]:
        """Bytes of each parameter in the master's precision."""
        plan = self._plan
        return [plan.master_bytes * (size // plan.element_bytes) for size in self._trained]

    def _take(self, weight: int, address: int) -> None:
        if self._is_first:
            self._gradients[weight] = address
        else:
            self._free(address)

    def _end_backward(self) -> None:
        """Reduce flat copies one after the other, as `allreduce_bucket` of `engine.py` does."""
        if self._is_last:
            e, most = self._plan.element_bytes, _ALLREDUCE_ELEMENTS
            pieces = range(0, self._num, most)
            sizes = [e * min(most, self._num - start) for start in pieces]
            self._pass_by(sizes, Part.BUCKETS)

    def _step(self) -> None:
        self._pass_by(self._masters, Part.GRADIENTS)
        self._free(*[self._allocate(size, Part.GRADIENTS) for size in self._masters])
        self._free(*self._gradients.values())
        self._gradients = {}
