"""The context that every driver is given: budget, folders, limits, reasons to stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from autotune.drivers.budget import Budget
from autotune.errors import LaunchError
from autotune.trials.protocols import Progress
from autotune.trials.trial import Failure, FailureKind, Outcome, Trial, TrialSpec

__all__ = ["BUDGET_ENDED", "DriverContext", "never_launched"]

BUDGET_ENDED = "the budget ended during the trial"


@dataclass(frozen=True, kw_only=True, slots=True)
class DriverContext:
    """What every loop over trials needs, on this machine or over a cluster."""

    budget: Budget
    """When to stop; trials still running at its end are stopped."""
    spec_of: Callable[[Trial], TrialSpec]
    """What to tell the processes of a trial."""
    folder_of: Callable[[int], Path]
    """A trial's folder here, by its number."""
    progress: Progress
    """Is told what happens."""
    is_interrupted: Callable[[], bool]
    """Whether the user wants out."""
    trial_timeout_s: float
    """A trial that runs longer is taken for hung."""

    def reason_to_stop(self) -> str | None:
        """In the words that running trials are stopped with, the user's wish first; else None."""
        if self.is_interrupted():
            return "the user interrupted the search"
        if self.budget.remaining_s <= 0:
            return BUDGET_ENDED
        return None


def never_launched(error: LaunchError) -> Outcome:
    """The outcome of a trial whose processes could not be started; it is worth another try."""
    return Outcome(failure=Failure(kind=FailureKind.LOST_NODE, message=str(error)))
