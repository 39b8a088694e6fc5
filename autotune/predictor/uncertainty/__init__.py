"""The uncertainty of predictions: coefficients, their fit, bounds of a step time."""
