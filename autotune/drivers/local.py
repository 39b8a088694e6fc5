"""The loop on this machine: one trial after the other on all its devices."""

from __future__ import annotations

from autotune.drivers.context import DriverContext, never_launched
from autotune.errors import LaunchError
from autotune.trials.protocols import Runner, TrialSource
from autotune.trials.trial import Outcome, Trial

__all__ = ["LocalDriver"]


class LocalDriver:
    """Asks, runs and tells until the study or the budget ends.

    Args:
        runner: runs one trial.
        context: what every driver is told.
    """

    def __init__(self, runner: Runner, context: DriverContext) -> None:
        self._runner = runner
        self._context = context

    def run(self, study: TrialSource) -> None:
        """Until the study has nothing left, the budget is spent or the user interrupts.

        Raises:
            LaunchError: the runner could not start any process; the trial is told as lost.
        """
        context, progress = self._context, self._context.progress
        while not context.is_interrupted():
            trial = study.ask(context.budget.remaining_s)
            progress.trials_changed(study.trials)
            if trial is None:
                return
            progress.trial_started(trial)
            try:
                outcome = self._runner.run(
                    context.spec_of(trial),
                    folder=context.folder_of(trial.number),
                    timeout_s=context.trial_timeout_s,
                    on_event=progress.trial_event,
                    should_stop=self._reason_to_stop,
                )
            except LaunchError as error:
                self._end(study, trial, never_launched(error))
                raise
            self._end(study, trial, outcome)

    def _end(self, study: TrialSource, trial: Trial, outcome: Outcome) -> None:
        ended = study.tell(trial, outcome)
        self._context.progress.trials_changed(study.trials)
        self._context.progress.trial_ended(ended)

    def _reason_to_stop(self) -> str | None:
        self._context.progress.refresh()
        return self._context.reason_to_stop()
