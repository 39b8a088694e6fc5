"""Messages between the driver and a trial on another node, as JSON: the order and the report.

Plain text, so that Ray pickles nothing of a study, and Tune neither walks through it nor keeps it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from autotune.machine.hardware import Hardware
from autotune.trials.trial import Outcome, TrialSpec

__all__ = ["TrialOrder", "TrialReport"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialOrder:
    """All that a trial's actor is told."""

    number: int
    """The trial's, in the study."""
    spec: TrialSpec
    hardware: Hardware
    """What the trial has, on all its nodes."""
    timeout_s: float
    placement: Mapping[str, Any]
    """Where it may run, as the scheduler takes it."""
    study: str
    """The study's name, for the names of folders."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """What must be installed where it runs."""

    def to_config(self) -> dict[str, str]:
        """As Tune's configuration of a trial."""
        record = {name: getattr(self, name) for name in ("number", "timeout_s", "study")} | {
            "placement": dict(self.placement),
            "versions": dict(self.versions),
            "spec": self.spec.to_dict(),
            "hardware": asdict(self.hardware),
        }
        return {"order": json.dumps(record)}

    @classmethod
    def from_config(cls, config: Mapping[str, str]) -> TrialOrder:
        """Read back what `to_config` gave."""
        record = json.loads(config["order"])
        record["spec"] = TrialSpec.from_dict(record["spec"])
        record["hardware"] = Hardware.from_dict(record["hardware"])
        return cls(**record)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialReport:
    """What a trial's actor says from time to time, and at its end."""

    events: tuple[Mapping[str, Any], ...] = ()
    """What rank 0 wrote since the last report."""
    outcome: Outcome | None = None
    """How it ended; None while it runs."""
    files: Mapping[str, str] = field(default_factory=dict)
    """The end of each file in the trial's folders, by its name; once it ended."""

    def to_result(self) -> dict[str, Any]:
        """As the result of a step of Tune's."""
        record = {"events": list(self.events), "files": dict(self.files)}
        if self.outcome is not None:
            record["outcome"] = asdict(self.outcome)
        return {"report": json.dumps(record), "done": self.outcome is not None}

    @classmethod
    def from_result(cls, result: Mapping[str, Any]) -> TrialReport:
        """Read back what `to_result` gave; an empty report where there is none."""
        record = json.loads(result.get("report") or "{}")
        outcome = record.get("outcome")
        return cls(
            events=tuple(record.get("events", ())),
            outcome=None if outcome is None else Outcome.from_dict(outcome),
            files=record.get("files", {}),
        )
