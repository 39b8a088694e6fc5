"""Where the command line prints: stdout for the answer, stderr for everything else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from autotune.names import visible

__all__ = [
    "answer_console",
    "can_be_redrawn",
    "error_console",
    "file_console",
    "print_document",
]

_LEAST_WIDTH = 80
"""Narrower than this, tables would lose the strategy's words."""

_PIPE_WIDTH = 120


class _PlainConsole(Console):
    """Knows no markup, and writes characters that are not printed as their escapes."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            text, style, control = segment
            if control or text.isprintable() or text == "\n":
                yield segment
            else:
                yield Segment("\n".join(map(visible, text.split("\n"))), style)


def answer_console() -> Console:
    """stdout: plain text in a pipe."""
    console = _PlainConsole(highlight=False, markup=False)
    console.width = max(console.width, _LEAST_WIDTH) if console.is_terminal else _PIPE_WIDTH
    return console


def error_console() -> Console:
    """stderr: a live view in a terminal, plain lines elsewhere."""
    console = _PlainConsole(stderr=True, highlight=False, markup=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


def file_console(file: IO[str]) -> Console:
    """A file that somebody may show in a terminal."""
    return _PlainConsole(file=file, width=_PIPE_WIDTH, markup=False)


def print_document(document: Mapping[str, Any]) -> None:
    """Print one JSON document on stdout, in ASCII: strings keep no character that steers.

    Not by way of rich, which takes 17 s and 0.9 GiB for the report of 2,000 trials.
    """
    console = answer_console()
    console.file.write(json.dumps(document, indent=2) + "\n")
    console.file.flush()


def can_be_redrawn(console: Console) -> bool:
    """Whether lines can be drawn again: not in a pipe, nor where the cursor does not move."""
    return console.file.isatty() and console.is_interactive and not console.is_dumb_terminal
