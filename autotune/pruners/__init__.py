"""Pruners: which strategies are not worth launching."""

from autotune.pruners.dominance import DominancePruner
from autotune.pruners.predicted_memory import PredictedMemoryPruner

__all__ = ["DominancePruner", "PredictedMemoryPruner"]
