"""Which trial of a study is best for what was asked, in words and as JSON values.

Does not know the rest of a report.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autotune.question.goal import Goal
from autotune.study.summary import StudySummary

__all__ = ["best_json", "best_words", "tie_words"]


def best_words(summary: StudySummary, exported: Path | None = None) -> str:
    """Which trial the search was after, and where it is exported to; something must fit."""
    best, goal = summary.best, summary.objective
    assert best is not None
    asked = f"best for --objective {goal}"
    if summary.best_for(goal) is None:
        goal = Goal.THROUGHPUT
        asked += ", which nothing was measured of"
    words = f"Trial {best.number}, {goal.words}, is {asked}"
    return words if exported is None else f"{words}; it is exported to {exported}"


def tie_words(summary: StudySummary) -> Iterator[str]:
    """A sentence where the fastest ran once, and one that ran again may be as fast."""
    fastest, incumbent = summary.best_for(Goal.THROUGHPUT), summary.incumbent_of_the_fastest
    if fastest is not None and incumbent is not None:
        yield (
            f"Trial {fastest.number}, the fastest, ran once. Trial {incumbent.number} may be as "
            f"fast, by its {len(incumbent.confirmations)} runs."
        )


def best_json(summary: StudySummary, exported: Path | None) -> dict[str, Any] | None:
    """The same as JSON values; None where nothing fits."""
    if summary.best is None:
        return None
    goal = summary.objective if summary.best_for(summary.objective) else Goal.THROUGHPUT
    folder = None if exported is None else str(exported)
    return {"trial": summary.best.number, "pick": str(goal.pick), "folder": folder}
