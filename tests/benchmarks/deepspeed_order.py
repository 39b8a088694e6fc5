"""DeepSpeed Autotuning's order of experiments, as a sampler: a baseline for the replay.

Fast mode of version 0.19.8, its default, read from its documentation and from what it runs: for
each ZeRO stage from 0 to 3 the least micro-batch, the largest that should fit (the next smaller
ones where it does not), and the sizes between half of that and it; a later stage begins at the
largest size of the one before. Nothing else is moved: neither checkpoints nor tiles nor kernels.
The run before all these, which learns the model's activation memory, is not counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from autotune.space.search_space import SearchSpace
from autotune.space.strategy import Strategy
from autotune.trials.trial import Trial

__all__ = ["DeepSpeedOrder"]

_NUM_SIZES = 3
"""`num_tuning_micro_batch_sizes`."""


class DeepSpeedOrder:
    """Proposes in that order, of the sizes that a space has.

    Args:
        space: which strategies there are; those with all other knobs at their reference are taken.
    """

    end_reason: str | None = "DeepSpeed Autotuning is done"

    def __init__(self, space: SearchSpace) -> None:
        strategies = list(space.strategies())
        reference = space.reference
        self._plain = {
            (s.zero_stage, s.micro_batch_size): s
            for s in strategies
            if replace(s, zero_stage=0, micro_batch_size=1)
            == replace(reference, zero_stage=0, micro_batch_size=1)
        }
        self._trials: Sequence[Trial] = ()
        self._order = self._steps()

    def propose(self, trials: Sequence[Trial]) -> Strategy | None:
        """The next of the order; None at its end."""
        self._trials = trials
        return next(self._order, None)

    def _runs(self, strategy: Strategy) -> bool:
        """Whether a trial of it came to a measurement."""
        return any(t.measurement is not None for t in self._trials if t.strategy == strategy)

    def _steps(self) -> Iterator[Strategy]:
        largest_before = 0
        for stage in range(4):
            of_stage = {size: s for (z, size), s in self._plain.items() if z == stage}
            sizes = sorted(size for size in of_stage if size >= largest_before)
            if not sizes:
                continue
            tried = [sizes[0]]
            yield of_stage[sizes[0]]
            if not self._runs(of_stage[sizes[0]]):
                continue
            fitting, largest = sizes, sizes[0]
            while fitting and (size := fitting[-1]) not in tried:
                tried.append(size)
                yield of_stage[size]
                if self._runs(of_stage[size]):
                    largest = size
                    break
                fitting = [s for s in fitting if s < size]
            between = [s for s in sizes if largest // 2 <= s <= largest and s not in tried]
            for size in between[:_NUM_SIZES]:
                yield of_stage[size]
            largest_before = max(largest_before, largest)
