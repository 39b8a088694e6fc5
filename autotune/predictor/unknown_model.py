"""Stands for the predictor where a model's layers are not known: it tells nothing of memory.

Every strategy is taken to be as fast as the user's own run, so that a trial's duration can be
planned; measurements alone tell strategies apart.
"""

from __future__ import annotations

import numpy as np

from autotune.predictor.reserved.simulation import ScriptSource
from autotune.space.strategy import Strategy
from autotune.space.strategy_table import StrategyTable
from autotune.trials.prediction_table import PredictionTable
from autotune.trials.trial import Measurement, Prediction

__all__ = ["UnknownModelPredictor"]


class UnknownModelPredictor:
    """A `Predictor` that knows one measurement.

    Args:
        measured: the user's own run.
    """

    def __init__(self, measured: Measurement) -> None:
        self._measured = measured

    def simulating(self, scripts: ScriptSource) -> UnknownModelPredictor:
        """Itself: there is nothing to simulate."""
        return self

    def predict(self, strategy: Strategy) -> Prediction:
        """No memory at all, and the time of the user's own run; neither is to be shown."""
        return Prediction(
            peak_memory_bytes=0,
            peak_memory_lower_bytes=0,
            peak_memory_upper_bytes=0,
            step_time_s=self._measured.step_time_s,
            tokens_per_second=self._measured.tokens_per_second,
            is_time_known=False,
            is_memory_known=False,
        )

    def predict_table(self, table: StrategyTable) -> PredictionTable:
        """The same for every strategy of a table."""
        nothing = np.zeros(len(table), dtype=np.int64)
        of_memory = {
            name: nothing
            for name, kind in PredictionTable.__annotations__.items()
            if kind == "_Bytes"
        }
        return PredictionTable(
            step_time_s=np.full(len(table), self._measured.step_time_s),
            tokens_per_second=np.full(len(table), self._measured.tokens_per_second),
            **of_memory,
        )
