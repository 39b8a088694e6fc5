"""How long a trial runs: its start and its steps, estimated from the trials before.

Does not know what a trial trains, nor how much time is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice
from statistics import median

import numpy as np
from numpy.typing import NDArray

from autotune.knob_values import Offload
from autotune.space.strategy import Strategy
from autotune.trials.composition import Composition
from autotune.trials.figures import TrialFigures
from autotune.trials.measurement import Measurement
from autotune.trials.protocols import Predictor
from autotune.trials.trial import Prediction, Trial, TrialState
from autotune.trials.trial_spec import TIMED_S

__all__ = ["ShownDurations", "StartKind", "TrialDurations", "start_kind"]

_START_S = 3.0
_SLOW_START_S = 15.0
"""What comes before the steps, and what is more where an extension is loaded or layers are
compiled; measured on an H100, until trials show it."""

_LEAST_START_S = 0.5

_NUM_WARM_UP_STEPS = 2
"""Warm-up steps that a trial is taken to have had if its losses were not kept."""

_NUM_TIMED_STEPS = 4
"""Timed steps of a trial, before any trial has shown how many it takes."""

_NUM_LATEST = 16
"""Trials are judged by so many of the latest: more would tell no more, and cost time."""

_WHOLE = Composition(num_micro_steps=1, num_run=1)

_Array = NDArray[np.float64]


class StartKind(IntEnum):
    """What comes before a trial's first timed step."""

    USUAL = 0
    SLOW = 1
    """An extension is loaded, or layers are compiled."""
    ON_HOST = 2
    """An extension is loaded, and the first such trial compiles the optimizer on the host."""


def start_kind(strategy: Strategy) -> StartKind:
    """The kind of start that trials of a strategy have."""
    if strategy.offload_optimizer is not Offload.NONE:
        return StartKind.ON_HOST
    is_slow = strategy.torch_compile or strategy.offload_param is not Offload.NONE
    return StartKind.SLOW if is_slow else StartKind.USUAL


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownDurations:
    """What the trials so far show of all."""

    start_s: tuple[float, float, float]
    """What a trial takes beside its steps, by `StartKind`."""
    num_timed: float
    """Timed steps, where they are short."""

    def expected_s(
        self,
        step_time_s: _Array,
        *,
        starts: NDArray[np.intp],
        share_run: _Array,
        num_warm_up: _Array,
    ) -> _Array:
        """How long trials are expected to run, one element each.

        Args:
            step_time_s: of a whole optimizer step.
            starts: `StartKind` of each.
            share_run: the fraction of each optimizer step that they run.
            num_warm_up: steps that they do not time.
        """
        run_s = step_time_s * share_run
        num_timed = np.clip(np.ceil(TIMED_S / run_s), 2.0, self.num_timed)
        start_s = np.array(self.start_s)[starts]
        expected: _Array = start_s + (num_warm_up + num_timed) * run_s
        return expected


class TrialDurations:
    """What is known of durations before any trial; learns from trials.

    Args:
        composition_of: how a trial of a strategy runs its optimizer steps.
        build_s: seconds that the first trial with an optimizer on the host has to compile.
    """

    def __init__(
        self,
        *,
        composition_of: Callable[[Strategy], Composition] = lambda strategy: _WHOLE,
        build_s: float = 0.0,
    ) -> None:
        self.composition_of = composition_of
        self._build_s = build_s
        self._kinds = TrialFigures(_kind_that_ran, width=1)

    def shown_by(self, trials: Sequence[Trial]) -> ShownDurations:
        """What these trials show."""
        kinds = self._kinds.of(trials)[:, 0]

        def latest(which: NDArray[np.bool_], but: int = 0) -> list[Trial]:
            indices = np.flatnonzero(which)[but:][-_NUM_LATEST:]
            return [trials[index] for index in indices.tolist()]

        usual = latest(kinds == StartKind.USUAL)
        build_s = 0.0 if (kinds == StartKind.ON_HOST).any() else self._build_s
        start_s = median(map(_start_s, usual)) if usual else _START_S
        # The first of them may have compiled, which the others do not.
        known = latest(kinds > StartKind.USUAL, but=1)
        slow_start_s = median(map(_start_s, known)) if known else start_s + _SLOW_START_S
        nums_timed = [
            len(trial.measurement.step_times_s)
            for trial in latest(kinds >= StartKind.USUAL)
            if trial.measurement is not None and trial.state is TrialState.COMPLETE
        ]
        return ShownDurations(
            start_s=(start_s, slow_start_s, slow_start_s + build_s),
            num_timed=max(2.0, median(nums_timed or [_NUM_TIMED_STEPS])),
        )

    def expected_s(
        self,
        strategy: Strategy,
        prediction: Prediction,
        trials: Sequence[Trial],
        *,
        predictor: Predictor,
    ) -> float:
        """How long a trial of one strategy is expected to run.

        Its steps at the predicted time, corrected by the median ratio of measured to predicted.
        What was predicted of others before they ran does not count: `predictor`, which made this
        prediction, may have learned since.
        """
        latest = islice((trial for trial in reversed(trials) if _has_run(trial)), _NUM_LATEST)
        ratios = [
            trial.measurement.step_time_s / predictor.predict(trial.strategy).step_time_s
            for trial in latest
            if trial.measurement is not None
        ]
        composition = self.composition_of(strategy)
        expected = self.shown_by(trials).expected_s(
            np.array([prediction.step_time_s * median(ratios or [1.0])]),
            starts=np.array([start_kind(strategy)]),
            share_run=np.array([composition.share_run]),
            num_warm_up=np.array([composition.num_warm_up]),
        )
        return float(expected[0])


def _kind_that_ran(trial: Trial) -> tuple[float]:
    """That of a trial which says how long others run; -1 of any other."""
    return (start_kind(trial.strategy) if _has_run(trial) else -1,)


def _has_run(trial: Trial) -> bool:
    return trial.measurement is not None and trial.was_launched


def _start_s(trial: Trial) -> float:
    """What a measured trial took beside its steps, warm-up included in these."""
    assert trial.measurement is not None
    return max(_LEAST_START_S, trial.duration_s - _steps_s(trial.measurement))


def _steps_s(measured: Measurement) -> float:
    num_steps = len(measured.losses) or _NUM_WARM_UP_STEPS + len(measured.step_times_s)
    return num_steps * measured.step_time_s * measured.share_run
