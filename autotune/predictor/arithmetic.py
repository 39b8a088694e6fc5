"""Arithmetic that is the same for one strategy and for a table of them.

What numbers do not share with numpy's arrays: the greater of two, a choice, whole numbers. One
function takes both, so that what is composed of them is written once. Records of numbers, such as
`States`, may hold arrays in the same way: one element a row. Types name the case of one strategy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["chosen", "greatest", "whole"]


def greatest(first: Any, *others: Any) -> Any:
    """The greatest, row by row where any of them is an array."""
    for other in others:
        if isinstance(first, np.ndarray) or isinstance(other, np.ndarray):
            first = np.maximum(first, other)
        else:
            first = max(first, other)
    return first


def chosen(condition: Any, first: Any, second: Any) -> Any:
    """The first where the condition holds, else the second."""
    if isinstance(condition, np.ndarray):
        return np.where(condition, first, second)
    return first if condition else second


def whole(number: Any) -> Any:
    """Without its fraction, as `int` takes it away."""
    return number.astype(np.int64) if isinstance(number, np.ndarray) else int(number)
