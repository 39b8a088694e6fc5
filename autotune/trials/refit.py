"""Decides when enough trials are new to fit again what was fitted to trials."""

from __future__ import annotations

__all__ = ["needs_refit"]

_REFIT_FRACTION = 0.04
"""Fraction of all observed trials that must be new: late in a long study one trial adds little."""


def needs_refit(num_observed: int, num_known: int) -> bool:
    """Whether enough has been observed since so many were known."""
    return abs(num_observed - num_known) > _REFIT_FRACTION * num_observed
