"""How much of the time is left. Does not know what it is spent on."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from autotune.errors import ConfigError

__all__ = ["Budget", "parse_duration"]

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str, flag: str) -> float:
    """Seconds of a duration such as 90s, 30m, 2h or 1h30m.

    Raises:
        ConfigError: it is none; the message names the flag.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh])", text)
    seconds = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or seconds <= 0:
        raise ConfigError(f"{flag} {text!r}: give a duration such as 90s, 30m, 2h or 1h30m")
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
