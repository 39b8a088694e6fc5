"""Starts with what is predicted to be best, then hands over to another sampler.

A search that knows nothing spends its first trials at random. The prediction knows something, so
the first trials go to it; the sampler that follows learns from them as from its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from autotune.prediction_table import PredictionTable
from autotune.protocols import Sampler
from autotune.strategy import Strategy
from autotune.strategy_table import StrategyTable
from autotune.trial import Trial

_BATCH = "micro_batch_size"

__all__ = ["PredictedFirstSampler", "most_promising"]


class PredictedFirstSampler:
    """Proposes given strategies first.

    Args:
        first: what to begin with, best first.
        then: proposes the rest.
    """

    def __init__(self, first: Sequence[Strategy], then: Sampler) -> None:
        self._first = tuple(first)
        self._then = then

    def propose(self, trials: Sequence[Trial]) -> Strategy | None:
        """The next of the first strategies, or what the other sampler proposes."""
        tried = {trial.strategy for trial in trials}
        for strategy in self._first:
            if strategy not in tried:
                return strategy
        return self._then.propose(trials)


def most_promising(
    table: StrategyTable, predicted: PredictionTable, *, limits: Mapping[str, int], num: int
) -> list[Strategy]:
    """The strategies with the highest predicted throughput that are predicted to fit.

    Neighbours differ little, so the best of each micro-batch size is chosen: the largest are
    fast, the small ones spread along the front. When all have come, the next best follow. Of the
    chosen, those whose upper bound fits too come first: what they show says whether the others are
    worth their risk.

    Args:
        table: all that may be tried.
        predicted: what they need.
        limits: room on device, host and disk, as `PredictionTable.missing_bytes` takes it.
        num: how many to choose at most.
    """
    fitting = np.flatnonzero(predicted.missing_bytes(**limits) == 0)
    fastest = fitting[np.argsort(-predicted.tokens_per_second[fitting], kind="stable")]
    best: list[int] = []
    for size in table.values_of(_BATCH):
        is_of_size = table.has(_BATCH, (size,))[fastest]
        best += np.flatnonzero(is_of_size)[:1].tolist()
    others = [place for place in range(min(num, len(fastest))) if place not in best]
    chosen = fastest[[*sorted(best), *others][:num]]
    is_in_doubt = predicted.peak_device_upper_bytes[chosen] > limits["device_bytes"]
    return [table.strategy(row) for row in chosen[np.argsort(is_in_doubt, kind="stable")]]
