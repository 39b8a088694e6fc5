"""How far a prediction may be off: its coefficients, their fit, bounds of a step time."""
