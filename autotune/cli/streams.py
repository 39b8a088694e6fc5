"""The standard streams: no command fails because of where its output goes.

Nobody reads on, a disk is full, a stream is closed, an encoding lacks a character. Does not know
what is printed.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import IO

__all__ = ["StandardStreams", "standard_streams"]

_LOOK_ALIKES = {
    0xB1: "+-",
    0xB2: "2",
    0xB5: "u",
    0xB7: "*",
    0xD7: "x",
    0x3BC: "u",
    0x2013: "-",
    0x2014: "-",
    0x2018: "'",
    0x2019: "'",
    0x201C: '"',
    0x201D: '"',
    0x2022: "*",
    0x2026: "...",
    0x2192: "->",
    0x2264: "<=",
    0x2265: ">=",
    0x2500: "-",
    0x2502: "|",
    0x2514: "`",
    0x251C: "|",
    0x2588: "#",
}
"""What stands for a character of ours where the stream's encoding lacks it."""


def _look_alike(error: UnicodeError) -> tuple[str, int]:
    """An error handler of codecs: a look-alike, or else Python's escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_LOOK_ALIKES)
    try:
        text.encode(error.encoding)
    except UnicodeEncodeError:
        text = text.encode("ascii", "backslashreplace").decode("ascii")
    return text, error.end


codecs.register_error("autotune.look_alike", _look_alike)


class _LastingOutput(io.FileIO):
    """A file that takes everything: what it could not write is lost, and `failure` says why."""

    failure: OSError | None = None

    def write(self, data: object) -> int:
        """Write, or let it go."""
        try:
            return super().write(data)  # type: ignore[arg-type]
        except BlockingIOError:
            raise
        except OSError as error:
            # Nobody reads on: whoever does not want the rest has not met a failure.
            if error.errno != errno.EPIPE and self.failure is None:
                self.failure = error
            return memoryview(data).nbytes  # type: ignore[arg-type]


class StandardStreams:
    """stdout and stderr while a command runs.

    Args:
        stdout: what is below `sys.stdout`, if it is ours.
    """

    def __init__(self, stdout: _LastingOutput | None) -> None:
        self._stdout = stdout

    @property
    def lost_answer(self) -> str | None:
        """Why the answer did not arrive, in words; None where it did, or nobody wanted it."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        if self._stdout is None or self._stdout.failure is None:
            return None
        failure = self._stdout.failure
        return f"stdout cannot be written: {failure.strerror or failure}"


@contextlib.contextmanager
def standard_streams() -> Iterator[StandardStreams]:
    """Make the streams safe to write to, as long as it is entered.

    A closed one becomes the null device, so that no file of ours is opened in its place. Streams
    that somebody has put in the place of the process's own are left as they are.
    """
    _open_closed()
    before = sys.stdout, sys.stderr
    stdout = None
    if sys.stdout is sys.__stdout__:
        sys.stdout, stdout = _lasting(sys.stdout, fd=1)
    if sys.stderr is sys.__stderr__:
        sys.stderr, _ = _lasting(sys.stderr, fd=2)
    try:
        yield StandardStreams(stdout)
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        sys.stdout, sys.stderr = before


def _open_closed() -> None:
    """Give closed descriptors, in whose place the next file would be opened, the null device."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest that is free, which is this one; processes that are started have it too.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _lasting(stream: IO[str] | None, fd: int) -> tuple[io.TextIOWrapper, _LastingOutput]:
    """A stream like this one that survives whatever happens to its other end."""
    if stream is not None:
        with contextlib.suppress(OSError):
            stream.flush()
    raw = _LastingOutput(fd, "w", closefd=False)
    text = io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(stream, "encoding", None) or "utf-8",
        errors="autotune.look_alike",
        line_buffering=fd == 2 or bool(getattr(stream, "line_buffering", False)),
        write_through=bool(getattr(stream, "write_through", False)),
    )
    return text, raw
