"""Ray's own log output, written to a file and kept out of the answer and the live view."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path

__all__ = ["ray_log_into", "without_ray_output"]

_LOGGER = logging.getLogger("ray")


class _LogStream(io.TextIOBase):
    """A stream whose lines are logged: Ray prints news of its nodes to standard output."""

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if line.strip():
                _LOGGER.info(line)
        return len(text)


@contextlib.contextmanager
def without_ray_output() -> Iterator[None]:
    """Nothing of Ray's on standard output."""
    with contextlib.redirect_stdout(_LogStream()):
        yield


@contextlib.contextmanager
def ray_log_into(file: Path) -> Iterator[None]:
    """Whatever it logs goes to this file, and nowhere else."""
    before = _LOGGER.handlers[:], _LOGGER.propagate, _LOGGER.level
    handler = logging.FileHandler(file, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    _LOGGER.handlers, _LOGGER.propagate = [handler], False
    _LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        handler.close()
        _LOGGER.handlers, _LOGGER.propagate, level = before
        _LOGGER.setLevel(level)
