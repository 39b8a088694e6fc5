"""The loop on this machine: one trial after the other on all its devices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from autotune.drivers.budget import Budget
from autotune.drivers.stopping import reason_to_stop
from autotune.trials.protocols import Progress, Runner, TrialSource
from autotune.trials.trial import Trial, TrialSpec

__all__ = ["LocalDriver"]


class LocalDriver:
    """Asks, runs and tells until the study or the budget ends.

    Args:
        runner: runs one trial.
        budget: when to stop; a trial still running at its end is stopped.
        spec_of: what to tell the processes of a trial.
        folder_of: a trial's folder, by its number.
        progress: is told what happens.
        is_interrupted: whether the user wants out.
        trial_timeout_s: a trial that runs longer is taken for hung.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        budget: Budget,
        spec_of: Callable[[Trial], TrialSpec],
        folder_of: Callable[[int], Path],
        progress: Progress,
        is_interrupted: Callable[[], bool],
        trial_timeout_s: float,
    ) -> None:
        self._runner = runner
        self._budget = budget
        self._spec_of = spec_of
        self._folder_of = folder_of
        self._progress = progress
        self._is_interrupted = is_interrupted
        self._trial_timeout_s = trial_timeout_s

    def run(self, study: TrialSource) -> None:
        """Until the study has nothing left, the budget is spent or the user interrupts."""
        while not self._is_interrupted():
            trial = study.ask(self._budget.remaining_s)
            self._progress.trials_changed(study.trials)
            if trial is None:
                return
            self._progress.trial_started(trial)
            outcome = self._runner.run(
                self._spec_of(trial),
                folder=self._folder_of(trial.number),
                timeout_s=self._trial_timeout_s,
                on_event=self._progress.trial_event,
                should_stop=self._reason_to_stop,
            )
            ended = study.tell(trial, outcome)
            self._progress.trials_changed(study.trials)
            self._progress.trial_ended(ended)

    def _reason_to_stop(self) -> str | None:
        self._progress.refresh()
        return reason_to_stop(self._budget, self._is_interrupted)
