"""Corrects a plan's predictions by a finished study of another question.

Physical coefficients transfer: the parts of the peak rates that kernels attain, the time of
launches, the allocator's slack. Does not know which strategies a plan has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.errors import ConfigError
from autotune.learner import CalibratedPredictor
from autotune.machine.hardware import DeviceType
from autotune.predictor import AnalyticPredictor, ScriptSource
from autotune.question.question import Question
from autotune.space.strategy import Strategy
from autotune.space.strategy_table import StrategyTable
from autotune.study.summary import StudySummary
from autotune.trials.prediction_table import PredictionTable
from autotune.trials.protocols import Predictor
from autotune.trials.trial import Prediction, Trial

__all__ = ["Calibration", "learn_from"]

_LEAST_TRIALS = 2
"""The calibration learns nothing from fewer trials."""

_UNMOVED = 0.0005
"""Less than this fraction is shown as no change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Predictions of one question, corrected by the trials of a study."""

    study: str
    """The study's folder, as the user named it."""
    measured_on: str
    """Its model, method and hardware, in words."""
    num_trials: int
    """Complete trials that were learned from."""
    device_kind: str
    """That the study ran on."""
    is_same_kind: bool
    """Whether it is the kind that is predicted for: step times are corrected only then."""
    prior: AnalyticPredictor
    calibrated: Predictor

    @property
    def uncertainty(self) -> str | None:
        """Why activations of the model are a guess; None where they are not."""
        return self.prior.uncertainty

    def predict(self, strategy: Strategy) -> Prediction:
        """Peak memory, and on the same kind of device step time, as the study corrects them."""
        learned = self.calibrated.predict(strategy)
        if self.is_same_kind:
            return learned
        return replace(
            self.prior.predict(strategy),
            peak_memory_bytes=learned.peak_memory_bytes,
            peak_memory_lower_bytes=learned.peak_memory_lower_bytes,
            peak_memory_upper_bytes=learned.peak_memory_upper_bytes,
            peak_allocated_bytes=learned.peak_allocated_bytes,
            breakdown_bytes=learned.breakdown_bytes,
        )

    def predict_table(self, table: StrategyTable) -> PredictionTable:
        """Peak memory and step time of every strategy of a table, in its order."""
        learned = self.calibrated.predict_table(table)
        if self.is_same_kind:
            return learned
        prior = self.prior.predict_table(table)
        return replace(
            learned, step_time_s=prior.step_time_s, tokens_per_second=prior.tokens_per_second
        )

    def sentences(self, table: StrategyTable) -> Iterator[str]:
        """What was learned from, and how far it changed the predictions of these strategies."""
        old, new = self.prior.predict_table(table), self.predict_table(table)
        memory = new.peak_memory_bytes / old.peak_memory_bytes - 1
        words = f"reserved memory {_moved(memory)}"
        if self.is_same_kind:
            times = new.step_time_s / old.step_time_s - 1
            words = f"step times {_moved(times)}, {words}"
        yield (
            f"Corrected by {self.num_trials} measured trials of {self.study} "
            f"({self.measured_on}). Change: {words}."
        )
        if not self.is_same_kind:
            yield (
                f"Step times are not corrected, because that study ran on another device kind: "
                f"{self.device_kind}."
            )

    def to_dict(self) -> dict[str, Any]:
        """What was learned from, as JSON values."""
        return {
            "study": self.study,
            "measured_on": self.measured_on,
            "device_kind": self.device_kind,
            "num_trials": self.num_trials,
            "step_time": self.is_same_kind,
        }


def learn_from(
    study: StudySummary, question: Question, script_of: ScriptSource | None = None
) -> Calibration:
    """What a study teaches about another question.

    Args:
        study: finished or not.
        question: the other one.
        script_of: as for `AnalyticPredictor`.

    Raises:
        ConfigError: nothing transfers, or it has too few trials.
    """
    flag = f"--calibrate-from {study.folder or study.name}"
    theirs, ours = study.hardware, question.hardware
    if theirs.device_type is not ours.device_type:
        raise ConfigError(
            f"{flag}: this study ran on {theirs}, which says nothing about {ours}; "
            f"name a study of {'GPUs' if ours.device_type is DeviceType.CUDA else 'CPU ranks'}"
        )
    trials = [trial for trial in study.trials if _teaches(trial)]
    if len(trials) < _LEAST_TRIALS:
        raise ConfigError(
            f"{flag}: this study has {len(trials)} measured trials, but at least {_LEAST_TRIALS} "
            "are needed; name another study, or continue its search"
        )
    prior = AnalyticPredictor(question.workload, ours, script_of)
    return Calibration(
        study=str(study.folder or study.name),
        measured_on=f"{study.workload.model.name}, {study.workload.method}, {theirs}",
        num_trials=len(trials),
        device_kind=theirs.device_kind,
        is_same_kind=theirs.device_kind == ours.device_kind,
        prior=prior,
        calibrated=CalibratedPredictor(
            prior, trials, source=AnalyticPredictor(study.workload, theirs)
        ),
    )


def _teaches(trial: Trial) -> bool:
    measured = trial.measurement
    return measured is not None and measured.num_alloc_retries == 0


def _moved(changes: NDArray[np.float64]) -> str:
    """The change in words: the median and the extremes."""
    if not len(changes) or np.abs(changes).max() < _UNMOVED:
        return "none (held-out trials show no need)"
    least, most = changes.min(), changes.max()
    return f"{np.median(changes):+.1%} at the median ({least:+.1%} to {most:+.1%})"
