"""What a strategy will need, before it runs."""

from autotune.predictor.analytic import AnalyticPredictor
from autotune.predictor.calibration import CalibratedPredictor

__all__ = ["AnalyticPredictor", "CalibratedPredictor"]
