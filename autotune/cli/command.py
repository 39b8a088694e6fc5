"""A command of the command line: refuses at once what no option can mean, in one line.

Does not know the commands.
"""

from __future__ import annotations

import errno
import os
import sys
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from autotune.errors import ConfigError

__all__ = ["Command", "usage_line"]

_MOST_CHARACTERS = 4096
"""The longest value in characters: PATH_MAX of Linux."""

_MOST_SHOWN = 60
"""Characters of a value that a message repeats."""

_FILES = frozenset(("model", "hardware", "space", "reuse"))
"""Options whose text may name a file; those that always do are paths."""

_NO_SUCH_NAME = frozenset((errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL))

_RULES: Mapping[str, str] = {
    "greater_than_equal": "must be at least {ge:,}, got {input}",
    "less_than_equal": "must be at most {le:,}, got {input}",
    "int_parsing": "must be a whole number, got {input}",
    "int_parsing_size": "must be a whole number of less than 4,300 digits, got {input}",
    "float_parsing": "must be a number, got {input}",
    "finite_number": "must be a finite number, got {input}",
}
"""What pydantic found wrong, by its name for it, as a rule that the user broke."""


class Command(TyperCommand):
    """A command that is given no text which nothing can be named by."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line, and check each text and path in it.

        Raises:
            ConfigError: a value that is empty, too long or holds what cannot be shown; the message
                names the option and repeats nothing that may be secret.
        """
        typed = tuple(args)
        rest = super().parse_args(ctx, args)
        if ctx.resilient_parsing:
            return rest
        for parameter in self.params:
            value = ctx.params.get(parameter.name)
            flag = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.name
            if isinstance(value, Path):
                # Python takes no text for the current folder.
                is_empty = value == Path() and ("" in typed or f"{flag}=" in typed)
                _check_text("" if is_empty else str(value), flag)
                _check_name(value, flag)
            elif isinstance(value, str):
                _check_text(value, flag)
                if parameter.name in _FILES:
                    _check_name(Path(value), flag)
        return rest


def _check_text(text: str, flag: str) -> None:
    if not text.strip():
        raise ConfigError(f"{flag} is empty; give a value, or leave it out")
    if len(text) > _MOST_CHARACTERS:
        raise ConfigError(
            f"{flag} has {len(text):,} characters; it takes at most {_MOST_CHARACTERS:,}"
        )
    for character in text:
        kind = unicodedata.category(character)
        if kind == "Cs":
            encoding = sys.getfilesystemencoding()
            raise ConfigError(f"{flag} has bytes that are not {encoding} text; give another value")
        if kind in ("Cc", "Zl", "Zp") or unicodedata.bidirectional(character) in _TURNS:
            raise ConfigError(
                f"{flag} has the control character U+{ord(character):04X}; remove it"
            )


_TURNS = frozenset(("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"))
"""Characters that turn the order of the text after them, in the words of Unicode's annex 9."""


def _check_name(path: Path, flag: str) -> None:
    """Refuse what the file system takes for no name at all."""
    try:
        path.stat()
    except OSError as error:
        if error.errno in _NO_SUCH_NAME:
            raise ConfigError(f"{flag} {_short(str(path))}: {os.strerror(error.errno)}") from None


def _short(text: str) -> str:
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def usage_line(error: typer.TyperException) -> str:
    """Wrong use that the command line's library has found, in one line."""
    parameter = getattr(error, "param", None)
    found: list[Any] = getattr(error.__cause__, "errors", list)()
    if parameter is not None and found and found[0]["type"] in _RULES:
        rule = _RULES[found[0]["type"]]
        # A bound of whole numbers is written as one, whatever the option takes.
        bounds = {
            key: int(bound) if isinstance(bound, float) and bound.is_integer() else bound
            for key, bound in found[0].get("ctx", {}).items()
        }
        shown = {"input": _short(str(found[0]["input"]))}
        return f"{parameter.opts[0]} {rule.format_map(bounds | shown)}"
    words = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    if context is None:
        return words
    return f"{words}{'' if words.endswith('?') else ';'} see {context.command_path} --help"
