"""What to try next, behind the seam of `protocols.Sampler`: our own, and Optuna's."""

from autotune.samplers.kind import SamplerKind
from autotune.samplers.optuna import OptunaSampler
from autotune.samplers.predicted import PredictedSampler

__all__ = ["OptunaSampler", "PredictedSampler", "SamplerKind"]
