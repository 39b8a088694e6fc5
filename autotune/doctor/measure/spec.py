"""What the ranks of a measurement are told, and the file for their results."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["RankSpec", "events_file", "remove_shared"]

_NUM_TRIES, _PAUSE_S = 20, 0.05


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


def remove_shared(folder: str) -> None:
    """Remove the folder of a measurement, in which ranks that end at the same moment still write.

    Args:
        folder: where it is; it need not be there.
    """
    for _ in range(_NUM_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not Path(folder).exists():
            return
        time.sleep(_PAUSE_S)
