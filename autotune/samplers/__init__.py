"""What to try next: Optuna's own samplers behind the seam of `protocols.Sampler`."""

from autotune.samplers.kind import SamplerKind
from autotune.samplers.optuna import OptunaSampler

__all__ = ["OptunaSampler", "SamplerKind"]
