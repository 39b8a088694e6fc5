"""The baseline of a study: the strategy that its user trains with today.

It is measured first, and every answer compares the best with it. Does not know how it was told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autotune.errors import ConfigError
from autotune.names import printable, visible
from autotune.space.strategy import Strategy

__all__ = ["Baseline"]

_LONGEST_PROBLEM = 1000
"""Characters of a problem that are kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """What the user has."""

    source: str
    """Where it was told, such as the name of a file."""
    strategy: Strategy | None
    """None where it cannot run here."""
    problem: str | None = None
    """Why it cannot, in words."""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; `from_dict` reads it back."""
        strategy = None if self.strategy is None else self.strategy.to_dict()
        return {"source": self.source, "strategy": strategy, "problem": self.problem}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Baseline:
        """Read back what `to_dict` wrote.

        Raises:
            ConfigError: it is none.
        """
        source, strategy = record.get("source"), record.get("strategy")
        problem = record.get("problem")
        is_right = isinstance(source, str) and isinstance(strategy, Mapping | None)
        if not is_right or not isinstance(problem, str | None):
            raise ConfigError("this is not a baseline of autotune")
        return cls(
            source=printable(str(source), "source"),
            strategy=None if strategy is None else Strategy.from_dict(strategy),
            problem=None if problem is None else visible(problem[:_LONGEST_PROBLEM]),
        )
