"""How much of the time budget is left. Does not know what it is spent on."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from autotune.errors import ConfigError

__all__ = ["Budget", "parse_duration"]

_DURATION = re.compile(
    r"(?:(?P<h>[0-9]+(?:\.[0-9]+)?)h)?"
    r"(?:(?P<m>[0-9]+(?:\.[0-9]+)?)m)?"
    r"(?:(?P<s>[0-9]+(?:\.[0-9]+)?)s)?"
)
"""Each unit once at most, the largest first."""

_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0}

_MOST_SHOWN = 40
"""Characters of a text that a message repeats."""

_LEAST_S = 1e-3
_MOST_S = 87600 * 3600.0
"""A millisecond and ten years: below and above, clocks and timers lose count."""


def parse_duration(text: str, flag: str) -> float:
    """Seconds of a duration such as 90s, 30m, 2h or 1h30m.

    Raises:
        ConfigError: it is none; the message names the flag.
    """
    found = _DURATION.fullmatch(text)
    parts = {} if found is None else found.groupdict(default="0")
    seconds = sum(float(number) * _UNITS_S[unit] for unit, number in parts.items())
    if not _LEAST_S <= seconds <= _MOST_S:
        shown = text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"
        bounds = "from 1 ms to 10 years" if seconds > 0 else "such as 90s, 30m, 2h or 1h30m"
        raise ConfigError(f"{flag} {shown!r}: give a duration {bounds}")
    return seconds


class Budget:
    """A wall-clock budget, counted from the start of the command.

    Args:
        seconds: the whole of it.
        started: the command's start by `clock`, now if left out.
        clock: seconds that never go backwards.
    """

    def __init__(
        self,
        seconds: float,
        *,
        started: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds = seconds
        self._clock = clock
        self._started = clock() if started is None else started

    @property
    def elapsed_s(self) -> float:
        """Seconds since the command started."""
        return self._clock() - self._started

    @property
    def remaining_s(self) -> float:
        """Seconds left; negative once it is spent."""
        return self.seconds - self.elapsed_s
