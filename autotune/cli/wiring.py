"""A study put together for one search: what proposes, predicts, prunes and is recorded.

Does not know where trials run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from autotune.cli.settings import SearchSettings
from autotune.learner import CalibratedPredictor
from autotune.machine.hardware import DeviceType
from autotune.predictor import AnalyticPredictor, UnknownModelPredictor
from autotune.pruners import DominancePruner, PredictedMemoryPruner
from autotune.question.question import Question
from autotune.samplers import OptunaSampler, PredictedSampler, SamplerKind
from autotune.samplers.enqueued import EnqueuedSampler
from autotune.space.search_space import SearchSpace
from autotune.space.strategy import Strategy
from autotune.study.record import TrialRecord
from autotune.study.study import Study
from autotune.trials.composition import composition_of
from autotune.trials.durations import TrialDurations
from autotune.trials.prediction_table import PredictionTable
from autotune.trials.protocols import Predictor, Sampler
from autotune.trials.trial import Trial

__all__ = ["wired_study"]


def wired_study(
    record: TrialRecord,
    question: Question,
    space: SearchSpace,
    predictor: AnalyticPredictor | UnknownModelPredictor,
    settings: SearchSettings,
    *,
    build_s: float,
) -> tuple[Study, Sampler]:
    """The study of a search, and the sampler in it.

    Args:
        record: the trials so far.
        question: what is asked.
        space: what may be tried.
        predictor: of this question.
        settings: how to search.
        build_s: what the first trial with CPU Adam compiles it in.
    """
    predicted = predictor.predict_table(space.table)
    missing_bytes = predicted.missing_bytes(question.limits)
    durations = TrialDurations(
        composition_of=lambda strategy: composition_of(
            question.workload, strategy, question.hardware.num_devices
        ),
        build_s=build_s,
    )
    sampler = _sampler(question, space, predictor, settings, durations)
    own = settings.baseline.strategy if settings.baseline is not None else None
    if own is not None:
        sampler = EnqueuedSampler((own,), sampler)
    if settings.num_forced:
        forced = _nearest_misses(space, predicted, question, settings.num_forced)
        sampler = EnqueuedSampler(forced, sampler)
    study = Study(
        record,
        sampler=sampler,
        predictor=predictor,
        learn=_learner(predictor),
        pruners=(
            PredictedMemoryPruner(
                question.memory_limit_bytes,
                host_memory_bytes=question.host_limit_bytes,
                disk_bytes=question.hardware.nvme_free_bytes,
                is_patient=bool(len(missing_bytes) and missing_bytes.min() > 0),
            ),
            DominancePruner(),
        ),
        max_trials=settings.max_trials,
        num_forced=settings.num_forced,
        num_confirmed=settings.num_confirmed,
        durations=durations,
        unpruned=own if own is not None and _is_harmless(own, question, predictor) else None,
    )
    return study, sampler


def _learner(
    predictor: AnalyticPredictor | UnknownModelPredictor,
) -> Callable[[Sequence[Trial]], Predictor] | None:
    """What learns from trials; nothing can where a model is not known."""
    if isinstance(predictor, AnalyticPredictor):
        return CalibratedPredictor(predictor).learn
    return None


def _is_harmless(strategy: Strategy, question: Question, predictor: Predictor) -> bool:
    """Whether a strategy that needs too much fails by itself: not by the host's memory or disk."""
    prediction, limits = predictor.predict(strategy), question.limits
    if question.hardware.device_type is not DeviceType.CPU:
        limits = replace(limits, device_bytes=prediction.peak_device_bytes)
    return not prediction.missing_bytes(limits)


def _sampler(
    question: Question,
    space: SearchSpace,
    predictor: AnalyticPredictor | UnknownModelPredictor,
    settings: SearchSettings,
    durations: TrialDurations,
) -> Sampler:
    if not isinstance(predictor, AnalyticPredictor):
        kind = settings.sampler
        kind = SamplerKind.TPE if kind is SamplerKind.PREDICTED else kind
        return OptunaSampler(space, kind=kind, seed=question.seed)
    if settings.sampler is not SamplerKind.PREDICTED:
        return OptunaSampler(space, kind=settings.sampler, seed=question.seed)
    return PredictedSampler(
        space.table,
        predictor,
        limits=question.limits,
        goal=settings.goal,
        min_gain=settings.min_gain,
        durations=durations,
    )


def _nearest_misses(
    space: SearchSpace, predicted: PredictionTable, question: Question, num: int
) -> Sequence[Strategy]:
    """The strategies that are predicted not to fit, the nearest to the limits first."""
    missing_bytes = predicted.missing_bytes(question.limits)
    too_large = np.flatnonzero(missing_bytes > 0)
    nearest = too_large[np.argsort(missing_bytes[too_large], kind="stable")][:num]
    return [space.table.strategy(row) for row in nearest.tolist()]
