"""The samplers that a search may choose from, by name. Does not know Optuna."""

from enum import StrEnum

__all__ = ["SamplerKind"]


class SamplerKind(StrEnum):
    """The samplers to choose from, by the name that --sampler takes."""

    PREDICTED = "predicted"
    """By expected improvement over what is predicted and was learned, for the time it takes."""
    TPE = "tpe"
    """Tree-structured Parzen estimator."""
    NSGA2 = "nsga2"
    """Non-dominated sorting genetic algorithm II."""
    GP = "gp"
    """Gaussian processes with constrained expected hypervolume improvement; slow to ask."""
    RANDOM = "random"
    GRID = "grid"
    """Every choice of the space, shuffled."""

    @property
    def learns(self) -> bool:
        """Whether proposals depend on the trials before."""
        return self not in (SamplerKind.RANDOM, SamplerKind.GRID)
