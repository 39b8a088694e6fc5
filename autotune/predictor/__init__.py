"""The predictor: the memory and the step time of a strategy before it runs."""

from autotune.predictor.analytic import AnalyticPredictor
from autotune.predictor.reserved.simulation import ScriptSource
from autotune.predictor.unknown_model import UnknownModelPredictor

__all__ = ["AnalyticPredictor", "ScriptSource", "UnknownModelPredictor"]
