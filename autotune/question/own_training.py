"""The user's own training, as a question has it: its command, and what its first run has shown.

Does not know what a strategy is: the knobs that the command holds are names and values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autotune.errors import ConfigError
from autotune.names import printable
from autotune.question.command import TrainingCommand

__all__ = ["OwnTraining"]

_MOST_KNOBS = 1000
_MOST_ROWS = 1e6


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnTraining:
    """A command whose ranks train under a strategy."""

    command: TrainingCommand
    is_predictable: bool
    """Whether the predictor knows its model; if not, measurements alone lead the search."""
    rows_per_sample: float = 1.0
    """Rows that its model is fed for each sample of a micro-batch; 0 where rows tell nothing."""
    joins_batches: bool = False
    """Whether the samples of a micro-batch can be joined without padding."""
    counts_tokens: bool = True
    """Whether its model is fed tokens; throughput is in samples otherwise."""
    knobs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Values that knobs have in the user's own run, by name, as plain JSON values."""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; `from_dict` reads it back."""
        return {
            "command": self.command.to_dict(),
            "is_predictable": self.is_predictable,
            "rows_per_sample": self.rows_per_sample,
            "joins_batches": self.joins_batches,
            "counts_tokens": self.counts_tokens,
            "knobs": dict(self.knobs),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> OwnTraining:
        """Read back what `to_dict` wrote.

        Raises:
            ConfigError: it is none.
        """
        rows, knobs = record.get("rows_per_sample", 1.0), record.get("knobs", {})
        flags = [
            record.get("is_predictable"),
            record.get("counts_tokens", True),
            record.get("joins_batches", False),
        ]
        is_number = isinstance(rows, int | float) and not isinstance(rows, bool)
        is_right = is_number and 0 <= rows <= _MOST_ROWS and isinstance(knobs, Mapping)
        if not is_right or not all(isinstance(flag, bool) for flag in flags):
            raise ConfigError("this is no training command of autotune")
        if len(knobs) > _MOST_KNOBS or not isinstance(record.get("command"), Mapping):
            raise ConfigError("this is no training command of autotune")
        return cls(
            command=TrainingCommand.from_dict(record["command"]),
            is_predictable=bool(flags[0]),
            rows_per_sample=float(rows),
            counts_tokens=bool(flags[1]),
            joins_batches=bool(flags[2]),
            knobs={printable(str(name), "knob"): value for name, value in knobs.items()},
        )
