"""The goals of a search, and which trial each of them picks.

`--objective`, `--pick`, reports and plans all take their words from here.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = ["FRONT_PICKS", "PICKS", "Goal"]


class Goal(StrEnum):
    """What trials are chosen for."""

    FRONT = "front"
    """The whole front: the hypervolume under it, up to the memory limit. Of its trials the fastest
    is handed back."""
    BALANCED = "balanced"
    """The knee of the front: beyond it, more speed costs much memory and less memory much speed.
    It is known once the front is, so that is sought."""
    THROUGHPUT = "throughput"
    """The fastest that fits: the most tokens per second."""
    MEMORY = "memory"
    """The leanest: the least memory."""
    ENERGY = "energy"
    """The least energy a token, where devices count it."""

    @property
    def pick(self) -> Goal:
        """The word for the one trial that is handed back."""
        return Goal.THROUGHPUT if self is Goal.FRONT else self

    @property
    def words(self) -> str:
        """What is special about the trial that is handed back, for parentheses."""
        return _WORDS[self.pick]


_WORDS = {
    Goal.THROUGHPUT: "the fastest",
    Goal.MEMORY: "the least memory",
    Goal.BALANCED: "the knee of the front",
    Goal.ENERGY: "the least energy per token",
}

FRONT_PICKS = (Goal.THROUGHPUT, Goal.MEMORY, Goal.BALANCED)
"""Words for one trial of a front of throughput and memory."""

PICKS = (*FRONT_PICKS, Goal.ENERGY)
"""Words for one trial."""
