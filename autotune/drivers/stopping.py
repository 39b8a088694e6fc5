"""Why a loop is to stop, in the words that its running trials are stopped with."""

from __future__ import annotations

from collections.abc import Callable

from autotune.drivers.budget import Budget

__all__ = ["BUDGET_ENDED", "reason_to_stop"]

BUDGET_ENDED = "the budget ended while it ran"


def reason_to_stop(budget: Budget, is_interrupted: Callable[[], bool]) -> str | None:
    """The user's wish before the clock's; None to go on."""
    if is_interrupted():
        return "the user interrupted the search"
    if budget.remaining_s <= 0:
        return BUDGET_ENDED
    return None
