"""Samplers: which strategy to try next. Our own, and Optuna's."""

from autotune.samplers.kind import SamplerKind
from autotune.samplers.optuna import OptunaSampler
from autotune.samplers.predicted import PredictedSampler

__all__ = ["OptunaSampler", "PredictedSampler", "SamplerKind"]
