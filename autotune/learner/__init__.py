"""The learner: predictions corrected by finished trials, and the sampler's posterior.

Both fit the coefficients of `predictor/uncertainty`. Does not know what is sought.
"""

from autotune.learner.calibration import CalibratedPredictor

__all__ = ["CalibratedPredictor"]
