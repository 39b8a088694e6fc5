"""Trials played back from a record: a runner without a GPU, to judge how a search chooses.

What a trial shows is what was measured of its strategy, with the noise of another run. Does not
know who proposes, nor what a real trial does.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pretended_steps import pretend_steps

from autotune.errors import StorageError
from autotune.space.strategy import Strategy
from autotune.trials.measurement import RUN_TO_RUN_DEVIATION
from autotune.trials.trial import Failure, FailureKind, Measurement, Outcome, TrialSpec

__all__ = ["Recorded", "ReplayClock", "ReplayRunner", "read_recorded"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """One strategy, and how its trial ended."""

    strategy: Strategy
    outcome: Outcome


def read_recorded(path: Path) -> list[Recorded]:
    """The trials of a file of JSON lines with `strategy` and `outcome`; of each strategy the last.

    Raises:
        StorageError: it cannot be read, or holds something else.
    """
    try:
        lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        found = {
            trial.strategy: trial
            for line in lines
            if line.get("outcome") and (trial := _recorded(line))
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"{path} is no record of trials: {error}") from error
    return list(found.values())


def _recorded(line: Mapping[str, Any]) -> Recorded:
    return Recorded(
        strategy=Strategy.from_dict(line["strategy"]),
        outcome=Outcome.from_dict(line["outcome"]),
    )


class ReplayClock:
    """Seconds that pass when somebody sleeps, and take no time."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def __call__(self) -> float:
        """Seconds since it was made."""
        return self._now_s

    def sleep(self, seconds: float) -> None:
        """Let them pass."""
        self._now_s += seconds


class ReplayRunner:
    """Hands out what was recorded, as `protocols.Runner`.

    A measured step is drawn from the recorded ones, and all of one trial are longer or shorter by
    the same factor. A trial takes as long as the recorded one did, with as many steps as it is
    told to run.

    Args:
        recorded: one for each strategy that may be asked for.
        run_to_run: deviation of the logarithm of that factor.
        seed: of the noise.
        clock: seconds.
        sleep: lets them pass.
    """

    def __init__(
        self,
        recorded: Iterable[Recorded],
        *,
        run_to_run: float = RUN_TO_RUN_DEVIATION,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._outcomes = {trial.strategy: trial.outcome for trial in recorded}
        self._run_to_run = run_to_run
        self._random = random.Random(seed)
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

        def ended(failure: Failure) -> Outcome:
            return Outcome(failure=failure, duration_s=self._clock() - started)

        recorded = self._outcomes.get(spec.strategy)
        if recorded is None:
            message = f"nothing was recorded of {spec.strategy}"
            return ended(Failure(kind=FailureKind.INVALID_CONFIGURATION, message=message))
        measured = recorded.measurement
        if measured is None:
            self._sleep(min(recorded.duration_s, timeout_s))
            failure = recorded.failure or Failure(kind=FailureKind.CRASH, message="not measured")
            return ended(failure)
        self._sleep(max(0.0, recorded.duration_s - _steps_s(measured)))
        on_event({"event": "ready", "setup_time_s": measured.setup_time_s})
        factor = math.exp(self._random.gauss(0.0, self._run_to_run))
        ran = pretend_steps(
            spec,
            next_step_s=lambda: factor * self._random.choice(measured.step_times_s),
            peak_bytes=measured.peak_memory_bytes,
            elapsed_s=lambda: self._clock() - started,
            timeout_s=timeout_s,
            sleep=self._sleep,
            on_event=on_event,
            should_stop=should_stop,
            share_run=spec.composition.share_run,
        )
        if ran.failure is not None:
            return ended(ran.failure)
        return Outcome(
            measurement=_measured_again(measured, ran.times_s, spec),
            reason=ran.defeat,
            duration_s=self._clock() - started,
        )


def _steps_s(measured: Measurement) -> float:
    """All optimizer steps of the recorded trial, those to warm up taken to be as long."""
    return len(measured.losses) * measured.step_time_s * measured.share_run


def _measured_again(
    measured: Measurement, step_times_s: tuple[float, ...], spec: TrialSpec
) -> Measurement:
    num_losses = spec.num_warm_up_steps + len(step_times_s)
    again = replace(
        measured,
        step_times_s=step_times_s,
        share_run=spec.composition.share_run,
        losses=(measured.losses + measured.losses[-1:] * num_losses)[:num_losses],
    )
    return replace(again, tokens_per_second=spec.workload.tokens_per_step / again.step_time_s)
