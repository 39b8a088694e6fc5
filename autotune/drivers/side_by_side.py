"""The loop on this machine where trials need but a part of its devices: several at a time.

Trials share the host. One that works in the host's memory, or through it over PCIe, would disturb
the others and be disturbed: it runs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from autotune.drivers.budget import Budget
from autotune.drivers.stopping import reason_to_stop
from autotune.trials.protocols import Progress, Runner, TrialSource
from autotune.trials.trial import Failure, FailureKind, Outcome, Trial, TrialSpec

__all__ = ["SideBySideDriver"]

_POLL_S = 0.05


class SideBySideDriver:
    """Asks, runs and tells until the study or the budget ends.

    The study, the record and the progress are used by the caller's thread alone; each runner has a
    thread of its own while it runs.

    Args:
        runners: each runs one trial at a time, on devices of its own.
        budget: when to stop; trials still running at its end are stopped.
        spec_of: what to tell the processes of a trial.
        folder_of: a trial's folder, by its number.
        progress: is told what happens; of events those of one trial at a time.
        is_interrupted: whether the user wants out.
        trial_timeout_s: a trial that runs longer is taken for hung.
    """

    def __init__(
        self,
        runners: Sequence[Runner],
        *,
        budget: Budget,
        spec_of: Callable[[Trial], TrialSpec],
        folder_of: Callable[[int], Path],
        progress: Progress,
        is_interrupted: Callable[[], bool],
        trial_timeout_s: float,
    ) -> None:
        self._runners = tuple(runners)
        self._budget = budget
        self._spec_of = spec_of
        self._folder_of = folder_of
        self._progress = progress
        self._is_interrupted = is_interrupted
        self._trial_timeout_s = trial_timeout_s
        self._stop_reason: str | None = None
        self._events: SimpleQueue[tuple[int, Mapping[str, Any]]] = SimpleQueue()
        self._running: dict[Future[Outcome], tuple[Trial, int]] = {}

    def run(self, study: TrialSource) -> None:
        """Until the study has nothing left, the budget is spent or the user interrupts.

        Raises:
            LaunchError: a runner could not start any process.
        """
        with ThreadPoolExecutor(len(self._runners)) as pool:
            try:
                self._loop(study, pool)
            finally:
                # Whatever ends the loop ends what still runs; the pool waits for it.
                self._stop_reason = self._stop_reason or "the search ended while it ran"

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
        trial = study.ask(self._budget.remaining_s)
        self._progress.trials_changed(study.trials)
        if trial is not None and trial.strategy.uses_host:
            self._progress.note(
                f"trial {trial.number} runs alone: it works in the host's memory, which trials "
                "side by side share"
            )
        return trial

    def _must_wait(self, trial: Trial) -> bool:
        return trial.strategy.uses_host and bool(self._running)

    def _start(self, trial: Trial, pool: ThreadPoolExecutor) -> None:
        taken = {place for _, place in self._running.values()}
        place = next(n for n in range(len(self._runners)) if n not in taken)
        self._progress.trial_started(trial)
        future = pool.submit(
            self._runners[place].run,
            self._spec_of(trial),
            folder=self._folder_of(trial.number),
            timeout_s=self._trial_timeout_s,
            on_event=lambda event: self._events.put((trial.number, event)),
            should_stop=lambda: self._stop_reason,
        )
        self._running[future] = (trial, place)

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
            self._end(study, trial, future.result())

    def _end(self, study: TrialSource, trial: Trial, outcome: Outcome) -> None:
        ended = study.tell(trial, outcome)
        self._progress.trials_changed(study.trials)
        self._progress.trial_ended(ended)

    def _look_around(self) -> None:
        """Note whether it is time to stop; runners read it from their threads."""
        self._progress.refresh()
        if reason := reason_to_stop(self._budget, self._is_interrupted):
            self._stop_reason = reason


def _never_run(reason: str | None) -> Outcome:
    """Of a trial that was waiting for the others to end when the search was stopped."""
    message = reason or "the search ended before it ran"
    return Outcome(failure=Failure(kind=FailureKind.INTERRUPTED, message=message))
