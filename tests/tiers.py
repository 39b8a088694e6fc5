"""The tier of each case of a parametrized test: some are quick, the others are slow."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest

__all__ = ["slow_but"]


def slow_but(quick: Collection[Any], cases: Iterable[Any]) -> list[Any]:
    """Cases for `parametrize`, of which only `quick` ones run in the quick tier."""
    return [
        case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases
    ]
