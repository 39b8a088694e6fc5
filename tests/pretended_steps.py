"""Optimizer steps of a trial without processes, for the runners of tests.

Says what a launcher says: each step, and why there are no more. Does not know where the length of
a step comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from autotune.trials.trial import Failure, FailureKind, TrialSpec
from autotune.worker.timed_steps import TimedSteps

__all__ = ["Pretended", "pretend_steps"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretended:
    """What the steps of a trial came to."""

    num_steps: int
    """Whole steps, those to warm up included."""
    times_s: tuple[float, ...]
    """Seconds of each timed step."""
    failure: Failure | None
    defeat: str | None
    """Why the trial was stopped early; None where it was not."""


def pretend_steps(
    spec: TrialSpec,
    *,
    next_step_s: Callable[[], float],
    peak_bytes: int,
    elapsed_s: Callable[[], float],
    timeout_s: float,
    sleep: Callable[[float], None],
    on_event: Callable[[Mapping[str, Any]], None],
    should_stop: Callable[[], str | None],
    share_run: float = 1.0,
    failure: Failure | None = None,
) -> Pretended:
    """Run steps until there are enough, or one fails.

    Args:
        spec: the trial.
        next_step_s: seconds of the next step.
        peak_bytes: peak memory of the trial.
        elapsed_s: seconds since the trial began.
        timeout_s: seconds after which it counts as hung.
        sleep: lets seconds pass.
        on_event: is told of each step.
        should_stop: why to stop, if so.
        share_run: fraction of each step that is run.
        failure: how the first step ends, if not well.
    """
    timed, index, defeat = TimedSteps(spec), 0, None
    while not timed.are_enough and defeat is None:
        seconds = next_step_s()
        spent_s = seconds * share_run
        sleep(spent_s)
        is_timed = index >= spec.num_warm_up_steps
        on_event({"event": "step", "index": index, "is_timed": is_timed, "time_s": seconds})
        if elapsed_s() > timeout_s:
            failure = Failure(kind=FailureKind.TIMEOUT, message="it did not end")
        elif reason := should_stop():
            failure = Failure(kind=FailureKind.INTERRUPTED, message=reason)
        if failure is not None:
            break
        if is_timed:
            timed.add(seconds, spent_s=spent_s)
            defeat = timed.defeat(peak_bytes)
        index += 1
    return Pretended(num_steps=index, times_s=tuple(timed.times_s), failure=failure, defeat=defeat)
