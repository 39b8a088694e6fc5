"""A predictor that caches recent predictions."""

from __future__ import annotations

from functools import lru_cache

from autotune.space.strategy import Strategy
from autotune.space.strategy_table import StrategyTable
from autotune.trials.prediction_table import PredictionTable
from autotune.trials.protocols import Predictor
from autotune.trials.trial import Prediction

__all__ = ["CachedPredictor"]

_NUM_LATEST = 256
"""Number of predictions that are cached: before each trial, a study asks for the predictions of
the latest trials and of trials that ran out of memory."""


class CachedPredictor:
    """The answers of another predictor, cached.

    Args:
        predictor: always gives the same answer to the same question.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._predict = lru_cache(_NUM_LATEST)(predictor.predict)

    def predict(self, strategy: Strategy) -> Prediction:
        """The predictor's answer for one strategy."""
        return self._predict(strategy)

    def predict_table(self, table: StrategyTable) -> PredictionTable:
        """The predictor's answer for a table; it is not cached."""
        return self._predictor.predict_table(table)
