"""What is not worth launching, behind the seam of `protocols.Pruner`."""

from autotune.pruners.dominance import DominancePruner
from autotune.pruners.predicted_memory import PredictedMemoryPruner

__all__ = ["DominancePruner", "PredictedMemoryPruner"]
