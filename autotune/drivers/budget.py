"""How much time is left, and how much of it a trial will take.

Learns from the trials that ran; does not know what they trained.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from statistics import median

from autotune.errors import ConfigError
from autotune.trials.protocols import Predictor
from autotune.trials.trial import Measurement, Prediction, Trial, TrialState

__all__ = ["Budget", "expected_duration_s", "parse_duration"]

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}

_FIRST_OVERHEAD_S = 8.0
"""What a trial costs beside its steps, before any trial has shown it."""

_NUM_WARM_UP_STEPS = 2

_NUM_TIMED_STEPS = 4
"""Timed steps of a trial, before any trial has shown how many it takes."""

_LONG_STEPS_S = 4.0
"""Timed steps end after so much time, but not before two."""


def parse_duration(text: str, flag: str) -> float:
    """Seconds of a duration such as 90s, 30m, 2h or 1h30m.

    Raises:
        ConfigError: it is none; the message names the flag.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh])", text)
    seconds = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or seconds <= 0:
        raise ConfigError(f"{flag} {text!r}: give a duration such as 90s, 30m, 2h or 1h30m")
    return seconds


class Budget:
    """A wall-clock budget, counted from the start of the command.

    Args:
        seconds: the whole of it.
        started: the command's start by `clock`, now if left out.
        clock: seconds that never go backwards.
    """

    def __init__(
        self,
        seconds: float,
        *,
        started: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds = seconds
        self._clock = clock
        self._started = clock() if started is None else started

    @property
    def elapsed_s(self) -> float:
        """Seconds since the command started."""
        return self._clock() - self._started

    @property
    def remaining_s(self) -> float:
        """Seconds left; negative once it is spent."""
        return self.seconds - self.elapsed_s


_NUM_LATEST = 16
"""A trial's time is judged by so many of the latest: more would tell no more, and cost time."""


def expected_duration_s(
    prediction: Prediction,
    trials: Sequence[Trial],
    *,
    predictor: Predictor,
    share_run: float = 1.0,
) -> float:
    """How long a trial is expected to run, judged by the trials that ran before.

    Its steps at the predicted time, corrected by the median ratio of measured to predicted, and
    the median of what other trials took beside their steps; as many steps as theirs. What was
    predicted of them before they ran does not count: `predictor`, which made this prediction, may
    have learned since.

    Args:
        prediction: of the strategy.
        trials: those before.
        predictor: what predicted it.
        share_run: the share of each optimizer step that the trial runs.
    """
    measured = [trial for trial in trials if trial.measurement is not None and trial.was_launched]
    measured = measured[-_NUM_LATEST:]
    ratios, overheads, nums_timed = [1.0], [_FIRST_OVERHEAD_S], [_NUM_TIMED_STEPS]
    if measured:
        ratios = [
            trial.measurement.step_time_s / predictor.predict(trial.strategy).step_time_s
            for trial in measured
            if trial.measurement is not None
        ]
        overheads = [
            trial.duration_s - _steps_duration_s(trial.measurement)
            for trial in measured
            if trial.measurement is not None
        ]
        nums_timed = [
            len(trial.measurement.step_times_s)
            for trial in measured
            if trial.measurement is not None and trial.state is TrialState.COMPLETE
        ] or nums_timed
    step_time_s = prediction.step_time_s * median(ratios) * share_run
    num_timed = max(2.0, min(median(nums_timed), -(-_LONG_STEPS_S // step_time_s)))
    return max(0.0, median(overheads)) + (_NUM_WARM_UP_STEPS + num_timed) * step_time_s


def _steps_duration_s(measured: Measurement) -> float:
    """All that was run of a trial's optimizer steps, warm-up included."""
    return len(measured.losses) * measured.step_time_s * measured.share_run
