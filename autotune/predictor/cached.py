"""A predictor that remembers recent predictions."""

from __future__ import annotations

from functools import lru_cache

from autotune.space.strategy import Strategy
from autotune.space.strategy_table import StrategyTable
from autotune.trials.prediction_table import PredictionTable
from autotune.trials.protocols import Predictor
from autotune.trials.trial import Prediction

__all__ = ["CachedPredictor"]

_NUM_LATEST = 256
"""A study asks for the latest trials and for those that ran out of memory before each trial."""


class CachedPredictor:
    """Another predictor's answers.

    Args:
        predictor: gives the same answer whenever it is asked the same.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._predict = lru_cache(_NUM_LATEST)(predictor.predict)

    def predict(self, strategy: Strategy) -> Prediction:
        """As the predictor's."""
        return self._predict(strategy)

    def predict_table(self, table: StrategyTable) -> PredictionTable:
        """As the predictor's."""
        return self._predictor.predict_table(table)
