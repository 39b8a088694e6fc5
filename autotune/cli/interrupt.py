"""Ctrl-C: once ends the search cleanly, twice kills it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["Interrupt"]

_SHOW_CURSOR = b"\x1b[?25h\r\n"
"""What a terminal needs whose live view ends in the middle of a line."""

_MOVE_NO_CURSOR = ("dumb", "unknown")
"""Terminals without a live view."""


class Interrupt:
    """Catches SIGINT and SIGTERM while it is entered.

    Args:
        on_first: called once after the first signal, for a word to the user.
    """

    def __init__(self, on_first: Callable[[], None]) -> None:
        self._has_come = False
        self._on_first: Callable[[], None] | None = on_first
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def check(self) -> bool:
        """Whether a signal has come.

        The user hears of it from here: the handler may have interrupted a line half written.
        """
        if self._has_come and self._on_first is not None:
            say, self._on_first = self._on_first, None
            say()
        return self._has_come

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._has_come:
            if sys.stderr.isatty() and os.environ.get("TERM") not in _MOVE_NO_CURSOR:
                with contextlib.suppress(OSError):
                    os.write(sys.stderr.fileno(), _SHOW_CURSOR)
            # The trial server sees its input close and kills everything below it.
            os._exit(128 + number)
        self._has_come = True
