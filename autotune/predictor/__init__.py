"""What a strategy will need, before it runs."""

from autotune.predictor.analytic import AnalyticPredictor
from autotune.predictor.reserved.simulation import ScriptSource

__all__ = ["AnalyticPredictor", "ScriptSource"]
