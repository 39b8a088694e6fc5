"""Given strategies come first, each once."""

from __future__ import annotations

from collections.abc import Sequence

from sample_study import complete

from autotune.samplers.enqueued import EnqueuedSampler
from autotune.space.strategy import Strategy
from autotune.trials.trial import Trial


class Ended:
    end_reason: str | None = "enough"

    def propose(self, trials: Sequence[Trial]) -> Strategy | None:
        return None


def test_given_strategies_come_first_and_the_other_sampler_has_the_last_word() -> None:
    given = [Strategy(micro_batch_size=size) for size in (4, 2)]
    sampler = EnqueuedSampler(given, Ended())
    trials: list[Trial] = []
    while (strategy := sampler.propose(trials)) is not None:
        trials.append(complete(len(trials), 1.0, 1.0, strategy=strategy))
    assert [trial.strategy for trial in trials] == given
    assert sampler.end_reason == "enough"
