"""What the ranks of a measurement are told, and where they write what they find."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["RankSpec", "events_file"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RankSpec:
    """What one rank is told."""

    folder: str
    """Where ranks meet and events are written."""
    rank: int
    num_ranks: int
    device_type: str
    supports_bf16: bool
    nvme_path: str | None

    def to_json(self) -> str:
        """As an argument of the command line; `from_json` reads it back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> RankSpec:
        """Read back what `to_json` wrote."""
        return cls(**json.loads(text))


def events_file(folder: Path) -> Path:
    """Lines of JSON by the first rank: `rate` with `value`, or with `failure` in words."""
    return folder / "events.jsonl"
