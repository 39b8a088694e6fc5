"""Where the command line prints: stdout for the answer, stderr for everything else."""

from __future__ import annotations

from rich.console import Console

__all__ = ["answer_console", "can_be_redrawn", "error_console"]

_LEAST_WIDTH = 80
"""Narrower than this, tables would lose the strategy's words."""

_PIPE_WIDTH = 120


def answer_console() -> Console:
    """stdout: plain text in a pipe."""
    console = Console(highlight=False)
    console.width = max(console.width, _LEAST_WIDTH) if console.is_terminal else _PIPE_WIDTH
    return console


def error_console() -> Console:
    """stderr: a live view in a terminal, plain lines elsewhere."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


def can_be_redrawn(console: Console) -> bool:
    """Whether lines can be drawn again: not in a pipe, nor where the cursor does not move."""
    return console.file.isatty() and console.is_interactive and not console.is_dumb_terminal
