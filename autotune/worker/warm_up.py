"""Decides which steps only warm up: the first ones, and those around a compilation."""

from __future__ import annotations

__all__ = ["WarmUp"]

_MAX_COMPILING_STEPS = 8
"""So many steps more at most, so that a model that is always compiled anew is measured as such."""


class WarmUp:
    """The first steps, and then all up to one after the last that compiled.

    Args:
        num_steps: steps that are never timed.
    """

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._has_compiled = False

    def covers(self, index: int, *, has_compiled: bool) -> bool:
        """Whether a step that has run was part of it; asked of each step in turn."""
        is_compiling = has_compiled or self._has_compiled
        self._has_compiled = has_compiled
        is_bounded = index < self._num_steps + _MAX_COMPILING_STEPS
        return index < self._num_steps or (is_compiling and is_bounded)
