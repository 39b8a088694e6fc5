"""How the optimizer steps of a trial are run: how many warm up, and which part of each is run.

Of long ones a few micro-batches are run, and the whole time is composed.

With a fixed global batch a small micro-batch means many of the same micro-steps in every
optimizer step. All but the first and the last are alike: the first finds no gradients to add to,
and the last has the optimizer step, and under ZeRO 0 and 1 the reduction of gradients. So a trial
runs optimizer steps of four micro-batches instead, with DeepSpeed's own accumulation, and takes
the time of the second and third for that of all between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from autotune.question.workload import Workload
from autotune.space.strategy import Strategy

__all__ = ["Composition", "composition_of"]

Item = TypeVar("Item")

_NUM_RUN = 4
"""The first, two of those between, and the last."""

_LEAST = 2 * _NUM_RUN
"""With fewer micro-batches a step is run whole: hardly any time would be saved."""

_NUM_WARM_UP, _NUM_WARM_UP_OF_ZERO3 = 1, 2
"""The first step loads kernels and makes the optimizer's states. Of ZeRO-3, which records in it
what it fetches, the second is slower too, by 13 to 190 % in 8 of 9 trials recorded on GPUs; of
ZeRO-0 to 2 it is as the rest: from -1.5 to +1.6 % in 28 of 29."""

_MICRO_STEPS_TO_WARM_UP = 4
"""A step of so many micro-batches warms kernels and allocator up by itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Composition:
    """How the optimizer steps of a trial are run."""

    num_micro_steps: int
    """Micro-batches of one optimizer step on one rank."""
    num_run: int
    """How many of these are run."""
    num_warm_up: int = _NUM_WARM_UP
    """First optimizer steps that are not timed."""

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left out."""
        return self.num_run == self.num_micro_steps

    @property
    def share_run(self) -> float:
        """Share of the micro-steps that are run."""
        return self.num_run / self.num_micro_steps

    def parts(self, micro_batches: list[Item]) -> list[list[Item]]:
        """The micro-batches that are run, as they are timed together."""
        if self.is_whole:
            return [micro_batches]
        return [micro_batches[:1], micro_batches[1:-1], micro_batches[-1:]]

    def step_time_s(self, parts_s: Sequence[float]) -> float:
        """Time of the whole optimizer step, given that of each part."""
        if self.is_whole:
            return sum(parts_s)
        first, between, last = parts_s
        return first + (self.num_micro_steps - 2) * between / (self.num_run - 2) + last

    def workload(self, whole: Workload) -> Workload:
        """What the engine trains: the same with as many samples a step as are run."""
        size = whole.global_batch_size * self.num_run // self.num_micro_steps
        return replace(whole, global_batch_size=size)


def composition_of(workload: Workload, strategy: Strategy, num_ranks: int) -> Composition:
    """How to run a strategy's optimizer steps: long ones in part, others whole.

    The micro-batches of a pipeline overlap, so no time is any one's own. Where samples have
    lengths of their own, no micro-batch stands for another.
    """
    num = strategy.gradient_accumulation_steps(workload.global_batch_size, num_ranks)
    is_short = num < _LEAST or strategy.pipeline_parallel_size > 1 or workload.lengths is not None
    num_run = num if is_short else _NUM_RUN
    is_slow_to_warm = strategy.zero_stage == 3 and num_run < _MICRO_STEPS_TO_WARM_UP
    return Composition(
        num_micro_steps=num,
        num_run=num_run,
        num_warm_up=_NUM_WARM_UP_OF_ZERO3 if is_slow_to_warm else _NUM_WARM_UP,
    )
