"""What a strategy will need, before it runs."""

from autotune.predictor.analytic import AnalyticPredictor

__all__ = ["AnalyticPredictor"]
