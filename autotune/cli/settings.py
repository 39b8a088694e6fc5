"""What a search is told beside its question: where its study is kept, and how it goes about it.

Does not know the command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autotune.drivers.budget import Budget
from autotune.question.goal import Goal
from autotune.samplers import SamplerKind
from autotune.study.baseline import Baseline
from autotune.study.folder import StudyFolder

__all__ = ["SearchSettings", "StudyLocation"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyLocation:
    """Where a study is kept, and what it may take over."""

    path: Path
    """The study's folder."""
    storage_url: str | None = None
    """Where trials are kept; the folder's own file if left out."""
    must_exist: bool = False
    """Refuse to start a new study."""
    reuse: str | None = None
    """What --reuse names, if anything."""
    reserved: StudyFolder | None = None
    """The folder, where it was made and locked before the question was known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSettings:
    """How a search goes about its question; none of it changes what a trial measures."""

    budget: Budget
    sampler: SamplerKind
    goal: Goal
    min_gain: float
    """The search ends if no strategy is likely to improve the goal by more than that fraction."""
    max_trials: int | None
    num_forced: int
    """Pruned strategies that are launched all the same."""
    num_confirmed: int
    """How many of the best trials are run again at the end."""
    trial_timeout_s: float
    baseline: Baseline | None = None
    """What the user has; its strategy is measured first."""
