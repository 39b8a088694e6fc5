"""A runner without processes: it passes the same contract as the launcher, in no time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autotune.trials.trial import Failure, FailureKind, Measurement, Outcome, TrialSpec
from autotune.worker.timed_steps import TimedSteps

__all__ = ["FakeRunner"]


class FakeRunner:
    """Pretends to train: steps of one length, the clock its own.

    Args:
        step_time_s: of each optimizer step.
        failures: how trials end instead, by their micro-batch size.
        clock: seconds.
        sleep: lets the clock go on.
    """

    def __init__(
        self,
        *,
        step_time_s: float = 0.001,
        failures: Mapping[int, Failure] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._step_time_s = step_time_s
        self._failures = failures or {}
        self._clock = clock
        self._sleep = sleep

    def run(
        self,
        spec: TrialSpec,
        *,
        folder: Path,
        timeout_s: float,
        on_event: Callable[[Mapping[str, Any]], None] = lambda event: None,
        should_stop: Callable[[], str | None] = lambda: None,
    ) -> Outcome:
        """As `protocols.Runner.run`."""
        started = self._clock()
        on_event({"event": "ready", "setup_time_s": 0.0})
        timed, index, defeat = TimedSteps(spec), 0, None
        peak = 2**30 * spec.strategy.micro_batch_size
        while not timed.are_enough and defeat is None:
            self._sleep(self._step_time_s)
            on_event(
                {
                    "event": "step",
                    "index": index,
                    "is_timed": index >= spec.num_warm_up_steps,
                    "time_s": self._step_time_s,
                }
            )
            failure = self._failures.get(spec.strategy.micro_batch_size)
            if self._clock() - started > timeout_s:
                failure = Failure(kind=FailureKind.TIMEOUT, message="it did not end")
            elif reason := should_stop():
                failure = Failure(kind=FailureKind.INTERRUPTED, message=reason)
            if failure is not None:
                return Outcome(failure=failure, duration_s=self._clock() - started)
            if index >= spec.num_warm_up_steps:
                timed.add(self._step_time_s)
                defeat = timed.defeat(peak)
            index += 1
        measurement = Measurement(
            tokens_per_second=spec.workload.tokens_per_step / self._step_time_s,
            step_times_s=tuple(timed.times_s),
            losses=(10.0,) * index,
            peak_allocated_bytes=peak,
            peak_reserved_bytes=peak,
            peak_device_bytes=peak,
        )
        return Outcome(measurement=measurement, reason=defeat, duration_s=self._clock() - started)
