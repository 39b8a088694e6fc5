"""The loop on this machine that runs several trials at once, each on some of the devices.

Trials share the host. One that works in the host's memory, or through it over PCIe, would disturb
the others and be disturbed: it runs alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from queue import Empty, SimpleQueue
from typing import Any

from autotune.drivers.context import DriverContext, never_launched
from autotune.errors import LaunchError
from autotune.trials.protocols import Runner, TrialSource
from autotune.trials.trial import Failure, FailureKind, Outcome, Trial

__all__ = ["SideBySideDriver"]

_POLL_S = 0.05

_ENDED = "the search ended during the trial"


class SideBySideDriver:
    """Asks, runs and tells until the study or the budget ends.

    The study, the record and the progress are used by the caller's thread alone; each runner has a
    thread of its own while it runs.

    Args:
        runners: each runs one trial at a time, on devices of its own.
        context: what every driver is told; the progress gets events of one trial at a time.
    """

    def __init__(self, runners: Sequence[Runner], context: DriverContext) -> None:
        self._runners = tuple(runners)
        self._context = context
        self._progress = context.progress
        self._stop_reason: str | None = None
        self._events: SimpleQueue[tuple[int, Mapping[str, Any]]] = SimpleQueue()
        self._running: dict[Future[Outcome], tuple[Trial, int]] = {}
        self._error: LaunchError | None = None

    def run(self, study: TrialSource) -> None:
        """Until the study has nothing left, the budget is spent or the user interrupts.

        Raises:
            LaunchError: a runner could not start any process; the trials are told before.
        """
        with ThreadPoolExecutor(len(self._runners)) as pool:
            try:
                self._loop(study, pool)
            finally:
                # Whatever ends the loop ends what still runs; the pool waits for it.
                self._stop_reason = self._stop_reason or _ENDED
        if self._error is not None:
            raise self._error

    def _loop(self, study: TrialSource, pool: ThreadPoolExecutor) -> None:
        waiting: Trial | None = None
        while True:
            self._look_around()
            while self._stop_reason is None and len(self._running) < len(self._runners):
                trial = waiting or self._ask(study)
                waiting = None
                if trial is None:
                    break
                if self._must_wait(trial):
                    waiting = trial
                    break
                self._start(trial, pool)
            if not self._running:
                if waiting is None:
                    return
                # Only a stop leaves a trial waiting while nothing runs.
                self._end(study, waiting, _never_run(self._stop_reason))
                return
            self._collect(study)

    def _ask(self, study: TrialSource) -> Trial | None:
        """The next trial, unless one runs alone."""
        if any(trial.strategy.uses_host for trial, _ in self._running.values()):
            return None
        trial = study.ask(self._context.budget.remaining_s)
        self._progress.trials_changed(study.trials)
        if trial is not None and trial.strategy.uses_host:
            self._progress.note(
                f"trial {trial.number} runs alone, because it offloads to host memory, which "
                "parallel trials share"
            )
        return trial

    def _must_wait(self, trial: Trial) -> bool:
        return trial.strategy.uses_host and bool(self._running)

    def _start(self, trial: Trial, pool: ThreadPoolExecutor) -> None:
        taken = {slot for _, slot in self._running.values()}
        slot = next(n for n in range(len(self._runners)) if n not in taken)
        self._progress.trial_started(trial)
        future = pool.submit(
            self._runners[slot].run,
            self._context.spec_of(trial),
            folder=self._context.folder_of(trial.number),
            timeout_s=self._context.trial_timeout_s,
            on_event=lambda event: self._events.put((trial.number, event)),
            should_stop=lambda: self._stop_reason,
        )
        self._running[future] = (trial, slot)

    def _collect(self, study: TrialSource) -> None:
        """Wait a moment, show what happens, and tell what ended."""
        wait(self._running, timeout=_POLL_S, return_when=FIRST_COMPLETED)
        latest = max(trial.number for trial, _ in self._running.values())
        try:
            while True:
                number, event = self._events.get_nowait()
                if number == latest:
                    self._progress.trial_event(event)
        except Empty:
            pass
        for future in [future for future in self._running if future.done()]:
            trial, _ = self._running.pop(future)
            try:
                outcome = future.result()
            except LaunchError as error:
                # The others are stopped and told before it ends the search.
                self._error, self._stop_reason = error, self._stop_reason or _ENDED
                outcome = never_launched(error)
            self._end(study, trial, outcome)

    def _end(self, study: TrialSource, trial: Trial, outcome: Outcome) -> None:
        ended = study.tell(trial, outcome)
        self._progress.trials_changed(study.trials)
        self._progress.trial_ended(ended)

    def _look_around(self) -> None:
        """Note whether it is time to stop; runners read it from their threads."""
        self._progress.refresh()
        if reason := self._context.reason_to_stop():
            self._stop_reason = reason


def _never_run(reason: str | None) -> Outcome:
    """The outcome of a trial that waited for others when the search was stopped."""
    message = reason or "the search ended before the trial started"
    return Outcome(failure=Failure(kind=FailureKind.INTERRUPTED, message=message))
