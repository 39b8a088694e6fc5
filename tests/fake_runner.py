"""A runner without processes: it passes the same contract as the launcher, in no time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pretended_steps import pretend_steps

from autotune.trials.trial import Failure, Measurement, Outcome, TrialSpec

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
        peak = 2**30 * spec.strategy.micro_batch_size
        ran = pretend_steps(
            spec,
            next_step_s=lambda: self._step_time_s,
            peak_bytes=peak,
            elapsed_s=lambda: self._clock() - started,
            timeout_s=timeout_s,
            sleep=self._sleep,
            on_event=on_event,
            should_stop=should_stop,
            failure=self._failures.get(spec.strategy.micro_batch_size),
        )
        if ran.failure is not None:
            return Outcome(failure=ran.failure, duration_s=self._clock() - started)
        measurement = Measurement(
            tokens_per_second=spec.workload.tokens_per_step / self._step_time_s,
            step_times_s=ran.times_s,
            losses=(10.0,) * ran.num_steps,
            peak_allocated_bytes=peak,
            peak_reserved_bytes=peak,
            peak_device_bytes=peak,
        )
        duration_s = self._clock() - started
        return Outcome(measurement=measurement, reason=ran.defeat, duration_s=duration_s)
