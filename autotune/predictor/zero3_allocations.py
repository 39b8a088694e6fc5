"""What ZeRO-3 allocates around forward and backward of one rank.

Read from `runtime/zero/stage3.py` of DeepSpeed 0.19.8. Does not know a model's code.
"""

from __future__ import annotations

from autotune.predictor.engine_allocations import Engine

__all__ = ["Stage3"]


class Stage3(Engine):
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

    def _take(self, weight: int, address: int) -> None:
        num = self._weights[weight].size_bytes // self._plan.element_bytes
        if self._pending + num > self._plan.bucket_elements:
            self._reduce()
        self._free(address)
        self._pending += num

    def _reduce(self) -> None:
        """`coalesced_collectives.py`, `reduce_scatter_coalesced`: a copy of what is sent."""
        self._pass_by([self._plan.element_bytes * self._pending])
        self._pending = 0

    def _end_backward(self) -> None:
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
