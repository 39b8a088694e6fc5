"""Starts with what is predicted to be best, then hands over to another sampler.

A search that knows nothing spends its first trials at random. The prediction knows something, so
the first trials go to it; the sampler that follows learns from them as from its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from autotune.protocols import Predictor, Sampler
from autotune.strategy import Strategy
from autotune.trial import Prediction, Trial

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
    strategies: Iterable[Strategy],
    predictor: Predictor,
    *,
    memory_limit_bytes: int,
    host_memory_bytes: int,
    num: int,
    disk_bytes: int = 0,
) -> list[Strategy]:
    """The strategies with the highest predicted throughput that are predicted to fit.

    Neighbours differ little, so the best of each micro-batch size is chosen: the largest are
    fast, the small ones spread along the front. When all have come, the next best follow. Of the
    chosen, those whose upper bound fits too come first: what they show says whether the others are
    worth their risk.

    Args:
        strategies: all that may be tried.
        predictor: says what they need.
        memory_limit_bytes: device memory that a strategy may use.
        host_memory_bytes: memory of the host.
        num: how many to choose at most.
        disk_bytes: free disk under --nvme-path.
    """
    fitting: list[tuple[Strategy, Prediction]] = []
    for strategy in strategies:
        prediction = predictor.predict(strategy)
        missing = prediction.missing_bytes(
            device_bytes=memory_limit_bytes,
            host_bytes=host_memory_bytes,
            disk_bytes=disk_bytes,
        )
        if not missing:
            fitting.append((strategy, prediction))
    fitting.sort(key=lambda pair: -pair[1].tokens_per_second)
    ordered = [strategy for strategy, _ in fitting]
    seen: set[int] = set()
    chosen: list[Strategy] = []
    for strategy in ordered:
        if strategy.micro_batch_size not in seen:
            seen.add(strategy.micro_batch_size)
            chosen.append(strategy)
    chosen += [strategy for strategy in ordered if strategy not in chosen]
    in_doubt = {
        strategy
        for strategy, prediction in fitting
        if prediction.peak_device_upper_bytes > memory_limit_bytes
    }
    return sorted(chosen[:num], key=in_doubt.__contains__)
