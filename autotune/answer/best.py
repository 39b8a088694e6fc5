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
    """Which trial is best for the goal, and where its export is; some trial must fit."""
    best, goal = summary.best, summary.goal
    assert best is not None
    if summary.best_for(goal) is None:
        words = f"Fastest: trial {best.number} (no trial measured --objective {goal})"
    else:
        words = f"Best for --objective {goal}: trial {best.number} ({goal.words})"
    return words if exported is None else f"{words}, exported to {exported}"


def tie_words(summary: StudySummary) -> Iterator[str]:
    """A sentence if the fastest trial ran once and a confirmed one may be as fast."""
    fastest, incumbent = summary.best_for(Goal.THROUGHPUT), summary.incumbent_of_the_fastest
    if fastest is not None and incumbent is not None:
        yield (
            f"Trial {fastest.number} is the fastest, but ran only once. Trial {incumbent.number} "
            f"may be as fast: it has {len(incumbent.confirmations)} confirming runs."
        )


def best_json(summary: StudySummary, exported: Path | None) -> dict[str, Any] | None:
    """The best trial, its pick and its export as JSON values; None if nothing fits."""
    if summary.best is None:
        return None
    goal = summary.goal if summary.best_for(summary.goal) else Goal.THROUGHPUT
    folder = None if exported is None else str(exported)
    return {"trial": summary.best.number, "pick": str(goal.pick), "folder": folder}
