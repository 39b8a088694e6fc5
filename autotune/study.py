"""The study: asked for the next trial, told how it ended. Passive: drivers own the loop.

Proposes through a sampler, predicts, skips what is not worth launching, and keeps the record.
Does not know how trials run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autotune.budget import expected_duration_s
from autotune.protocols import Predictor, Pruner, Sampler
from autotune.record import TrialRecord
from autotune.strategy import Strategy
from autotune.trial import Outcome, Prediction, Trial, TrialState

__all__ = ["Study"]

_MAX_RETRIES = 2
"""A strategy whose trial failed for reasons that are not its own is tried so often again."""

_MAX_TOO_LONG = 10
"""After so many proposals that would not finish in time, the search ends."""


class Study:
    """One search, whoever drives it.

    Args:
        record: where trials are kept.
        sampler: what to try next.
        predictor: what a strategy will need.
        pruners: what not to launch; the first that objects gives the reason.
        max_trials: launch at most so many, those of earlier sessions included.
    """

    def __init__(
        self,
        record: TrialRecord,
        *,
        sampler: Sampler,
        predictor: Predictor,
        pruners: Sequence[Pruner],
        max_trials: int | None = None,
    ) -> None:
        self._record = record
        self._sampler = sampler
        self._predictor = predictor
        self._pruners = tuple(pruners)
        self._max_trials = max_trials
        self._trials = record.trials()
        self._too_long: list[Trial] = []
        self.end_reason: str | None = None
        """Why `ask` had nothing more, in words."""

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All trials so far, those of earlier sessions included."""
        return tuple(self._trials)

    def ask(self, remaining_s: float) -> Trial | None:
        """The next trial to launch, written down as running; None when the search is over.

        Strategies that are not worth launching are written down as pruned on the way.

        Args:
            remaining_s: what is left of the budget; nothing is started that needs more.

        Raises:
            StorageError: the record cannot be written.
        """
        while True:
            if self._max_trials is not None and self._num_launched() >= self._max_trials:
                self.end_reason = f"--trials {self._max_trials} were run"
                return None
            if remaining_s <= 0:
                self.end_reason = "the budget is spent"
                return None
            strategy = self._retry() or self._sampler.propose([*self._trials, *self._too_long])
            if strategy is None:
                self.end_reason = (
                    "the rest of the budget is too short for another trial"
                    if self._too_long
                    else "every strategy of the space was tried or ruled out"
                )
                return None
            prediction = self._predictor.predict(strategy)
            reason = self._reason_to_skip(strategy, prediction)
            if reason is not None:
                self._trials.append(self._record.add_pruned(strategy, prediction, reason))
                continue
            if expected_duration_s(prediction, self._trials) > remaining_s:
                self._too_long.append(_too_long(strategy, prediction))
                if len(self._too_long) >= _MAX_TOO_LONG:
                    self.end_reason = "the rest of the budget is too short for another trial"
                    return None
                continue
            trial = self._record.start(strategy, prediction)
            self._trials.append(trial)
            return trial

    def tell(self, trial: Trial, outcome: Outcome) -> Trial:
        """Write down how a trial ended; the trial as it now stands.

        Raises:
            StorageError: the record cannot be written.
        """
        ended = self._record.finish(trial, outcome)
        self._trials = [ended if t.number == trial.number else t for t in self._trials]
        return ended

    def _num_launched(self) -> int:
        return sum(
            trial.state is not TrialState.PRUNED
            and not (
                trial.failure is not None and trial.failure.kind.says_nothing_about_the_strategy
            )
            for trial in self._trials
        )

    def _retry(self) -> Strategy | None:
        """A strategy whose trials all failed for reasons that are not its own."""
        attempts: dict[Strategy, list[Trial]] = {}
        for trial in self._trials:
            attempts.setdefault(trial.strategy, []).append(trial)
        too_long = {trial.strategy for trial in self._too_long}
        for strategy, tried in attempts.items():
            is_open = all(
                trial.failure is not None and trial.failure.kind.says_nothing_about_the_strategy
                for trial in tried
            )
            if is_open and len(tried) <= _MAX_RETRIES and strategy not in too_long:
                return strategy
        return None

    def _reason_to_skip(self, strategy: Strategy, prediction: Prediction) -> str | None:
        for pruner in self._pruners:
            if reason := pruner.reason_to_skip(strategy, prediction, self._trials):
                return reason
        return None


def _too_long(strategy: Strategy, prediction: Prediction) -> Trial:
    """Stands for a strategy that is put off, so that the sampler proposes another."""
    pending = Trial(number=-1, strategy=strategy, state=TrialState.RUNNING, prediction=prediction)
    return replace(pending, reason="not expected to finish in the budget")
