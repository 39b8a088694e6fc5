"""Starts with given strategies, then hands over to another sampler.

Does not know why they come first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from autotune.space.strategy import Strategy
from autotune.trials.protocols import Sampler
from autotune.trials.trial import Trial

__all__ = ["EnqueuedSampler"]


class EnqueuedSampler:
    """Proposes given strategies first.

    Args:
        first: what to begin with.
        then: proposes the rest.
    """

    def __init__(self, first: Iterable[Strategy], then: Sampler) -> None:
        self._first = tuple(first)
        self._then = then

    @property
    def end_reason(self) -> str | None:
        """That of the other sampler."""
        return self._then.end_reason

    def propose(self, trials: Sequence[Trial]) -> Strategy | None:
        """The next of the first strategies, or what the other sampler proposes."""
        tried = {trial.strategy for trial in trials}
        for strategy in self._first:
            if strategy not in tried:
                return strategy
        return self._then.propose(trials)
