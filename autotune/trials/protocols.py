"""The protocols between packages, on one page: Predictor, Sampler, Pruner, Runner, Driver.

A role with several implementations (samplers, pruners) has one contract suite under `tests/` that
all of them pass. Those with one so far (predictor, runner, driver) are seams for the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from autotune.space.strategy import Strategy
from autotune.space.strategy_table import StrategyTable
from autotune.trials.prediction_table import PredictionTable
from autotune.trials.trial import Outcome, Prediction, Trial, TrialSpec

__all__ = ["Driver", "Predictor", "Progress", "Pruner", "Runner", "Sampler", "TrialSource"]


class Predictor(Protocol):
    """Says what a strategy will need, for one workload on one machine."""

    def predict(self, strategy: Strategy) -> Prediction:
        """Peak memory and step time of one strategy, with their uncertainty."""
        ...

    def predict_table(self, table: StrategyTable) -> PredictionTable:
        """The predictions of every strategy of a table, in its order: a million in seconds."""
        ...


class Sampler(Protocol):
    """Says what to try next; sees trials, never the study."""

    @property
    def end_reason(self) -> str | None:
        """Why `propose` gave None although strategies are left, in words."""
        ...

    def propose(self, trials: Sequence[Trial]) -> Strategy | None:
        """A strategy that none of `trials` has, or None when there is none left."""
        ...


class Pruner(Protocol):
    """Says what is not worth launching."""

    def reason_to_skip(
        self, strategy: Strategy, prediction: Prediction, trials: Sequence[Trial]
    ) -> str | None:
        """Why not to launch it, in words; None to launch."""
        ...


class Runner(Protocol):
    """Runs one trial to its end; never raises for what the trial does."""

    def run(
        self,
        spec: TrialSpec,
        *,
        folder: Path,
        timeout_s: float,
        on_event: Callable[[Mapping[str, Any]], None] = ...,
        should_stop: Callable[[], str | None] = ...,
    ) -> Outcome:
        """Start the ranks, wait, and leave no process of theirs behind.

        Args:
            spec: what to run.
            folder: an existing folder for the ranks' output.
            timeout_s: stop the trial after so many seconds.
            on_event: told of phases and steps while it runs.
            should_stop: asked many times a second; a sentence stops the trial as interrupted.

        Raises:
            LaunchError: no process could be started at all.
        """
        ...


class TrialSource(Protocol):
    """What a driver needs of a study: ask and tell."""

    @property
    def trials(self) -> Sequence[Trial]:
        """All trials so far."""
        ...

    def ask(self, remaining_s: float) -> Trial | None:
        """The next trial to launch, or None when nothing is left that fits into the time."""
        ...

    def tell(self, trial: Trial, outcome: Outcome) -> Trial:
        """Record how it ended; the trial as it stands in the record."""
        ...


class Progress(Protocol):
    """Shows a person what happens; decides nothing."""

    def note(self, words: str) -> None:
        """Something to know besides trials."""
        ...

    def cluster_changed(self, words: str) -> None:
        """Which nodes of a cluster there are now."""
        ...

    def trials_changed(self, trials: Sequence[Trial]) -> None:
        """The record as it now stands."""
        ...

    def trial_started(self, trial: Trial) -> None:
        """A trial is being launched."""
        ...

    def trial_event(self, event: Mapping[str, Any]) -> None:
        """A rank wrote an event."""
        ...

    def trial_ended(self, trial: Trial) -> None:
        """A trial ended, however."""
        ...

    def refresh(self) -> None:
        """Called many times a second while a trial runs."""
        ...


class Driver(Protocol):
    """Owns the loop: asks for trials, has them run, tells their outcomes."""

    def run(self, study: TrialSource) -> None:
        """Until the study has nothing left, or the budget is spent."""
        ...
