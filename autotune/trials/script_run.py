"""What a trial of the user's own training command is told beside its strategy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autotune.question.command import TrainingCommand
from autotune.question.own_training import OwnTraining

__all__ = ["ScriptRun", "script_run"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScriptRun:
    """One run of the user's command."""

    command: TrainingCommand
    is_untouched: bool = False
    """Whether the user's own settings are measured, and the question is found out."""
    is_predictable: bool = True
    """Whether the model's layers are known; if not, its own switches are used."""
    rows_per_sample: float = 1.0
    """Rows that the model is fed for each sample of a micro-batch: two where pairs are compared;
    0 where samples are joined in rows, so that rows tell nothing."""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; `from_dict` reads it back."""
        return {
            "command": self.command.to_dict(),
            "is_untouched": self.is_untouched,
            "is_predictable": self.is_predictable,
            "rows_per_sample": self.rows_per_sample,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ScriptRun:
        """Read back what `to_dict` wrote."""
        command = TrainingCommand.from_dict(record["command"])
        return cls(
            command=command,
            is_untouched=bool(record["is_untouched"]),
            is_predictable=bool(record["is_predictable"]),
            rows_per_sample=float(record["rows_per_sample"]),
        )


def script_run(own: OwnTraining) -> ScriptRun:
    """A run of the user's own training under a strategy."""
    return ScriptRun(
        command=own.command,
        is_predictable=own.is_predictable,
        rows_per_sample=own.rows_per_sample,
    )
