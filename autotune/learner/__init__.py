"""What finished trials teach: predictions corrected by them, and what is believed of a table.

Both fit the coefficients of `predictor/uncertainty`. Does not know what is sought.
"""

from autotune.learner.calibration import CalibratedPredictor

__all__ = ["CalibratedPredictor"]
