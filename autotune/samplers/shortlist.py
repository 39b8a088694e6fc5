"""The rows of a large space that are worth another look.

Late in a study one trial moves few posteriors, and looking at every row of a large space for each
would cost more than the trials' record does. Does not know what makes a row good.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autotune.trials.refit import needs_refit

__all__ = ["Shortlist"]

_NUM_ROWS = 512

_Places = NDArray[np.intp]


class Shortlist:
    """Which rows to look at."""

    def __init__(self) -> None:
        self._best: _Places | None = None
        self._num_observed = 0

    def rows(self, is_left: NDArray[np.bool_], num_observed: int) -> tuple[_Places, bool]:
        """Those to look at among what is left, and whether these are all."""
        if self._best is not None and not needs_refit(num_observed, self._num_observed):
            best = self._best[is_left[self._best]]
            if 2 * len(best) >= _NUM_ROWS:
                return best, False
        self._num_observed = num_observed
        return np.flatnonzero(is_left), True

    def keep(self, best_first: _Places) -> None:
        """What came out when all were looked at."""
        self._best = best_first[:_NUM_ROWS]

    def forget(self) -> None:
        """Have all looked at the next time."""
        self._best = None
