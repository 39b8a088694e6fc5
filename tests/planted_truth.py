"""A truth that predictions have wrong in known ways: what trials of one question would show."""

from __future__ import annotations

import math
from collections.abc import Callable

from planned import planned

from autotune.predictor import AnalyticPredictor
from autotune.space.strategy import Strategy
from autotune.trials.trial import Failure, FailureKind, Measurement, Outcome, Phase, Trial

__all__ = ["LIMIT_BYTES", "PLAN", "Truth", "factor", "outcome", "trial"]

PLAN = planned("1.1B", "1xH100-80GB", global_batch=32)
LIMIT_BYTES = PLAN.question.memory_limit_bytes
Truth = Callable[[Strategy], float]


def factor(strategy: Strategy) -> float:
    """By how much a step really takes longer than predicted: each technique by a share."""
    log = 0.12 * strategy.fused_kernels + 0.2 * (strategy.zero_stage in (1, 2))
    log += 0.05 * math.sin(strategy.micro_batch_size + 3 * strategy.checkpoint_interval)
    return math.exp(log)


def outcome(strategy: Strategy, truth: Truth = factor) -> Outcome:
    said = AnalyticPredictor(PLAN.workload, PLAN.hardware).predict(strategy)
    if said.peak_device_bytes > LIMIT_BYTES:
        failure = Failure(kind=FailureKind.DEVICE_OUT_OF_MEMORY, message="x", phase=Phase.BACKWARD)
        return Outcome(failure=failure, duration_s=3.0)
    step_time_s = said.step_time_s * truth(strategy)
    measurement = Measurement(
        tokens_per_second=PLAN.workload.tokens_per_step / step_time_s,
        step_times_s=(step_time_s,) * 2,
        peak_allocated_bytes=said.peak_allocated_bytes,
        peak_reserved_bytes=said.peak_memory_bytes,
        peak_device_bytes=said.peak_device_bytes,
        energy_j_per_token=0.01 * step_time_s * (1.3 if strategy.fused_kernels else 1),
    )
    return Outcome(measurement=measurement, duration_s=3.0 + 4 * step_time_s)


def trial(number: int, strategy: Strategy, ended: Outcome) -> Trial:
    """As the study keeps one that has ended so."""
    return Trial(
        number=number,
        strategy=strategy,
        state=ended.state,
        measurement=ended.measurement,
        failure=ended.failure,
        duration_s=ended.duration_s,
        memory_limit_bytes=LIMIT_BYTES,
    )
