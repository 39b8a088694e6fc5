"""Checks names that people read: of a device, a model, a space, a study.

A name goes into scripts, terminals and Markdown. So it is checked once, where it comes in: from a
file, an option, a driver, a label or a storage. Does not know what the name is of.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, ValidationInfo

from autotune.errors import ConfigError

__all__ = ["PlainName", "PrintableText", "one_line", "plain_name", "printable", "visible"]

_LONGEST_NAME = 255
"""Characters; a file's name has no more bytes either."""

_LONGEST_PATH = 4096

_STEERING = frozenset("`$\\\"';&|<>*?!{}[]")
"""What a shell, a terminal's markup or HTML gives a meaning to."""


def visible(text: str) -> str:
    r"""The text in one line, each character that is not printed as its escape, such as \u001b.

    Of these are control characters, line ends, overrides of the writing direction, lone
    surrogates. The escapes are those of JSON, so that a JSON text stays one.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escape(each) for each in text)


def one_line(text: str) -> str:
    """The words of a text in one line: a blank for each run of white space, the rest visible."""
    return visible(" ".join(text.split()))


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def printable(text: str, what: str, *, longest: int = _LONGEST_PATH) -> str:
    """The text, checked: all its characters are printable.

    Args:
        text: such as a path.
        what: its name in messages.
        longest: characters that it may have.

    Raises:
        ConfigError: it is empty, too long, or has characters that are not printed.
    """
    if not text.strip():
        raise ConfigError(f"{what} is empty; give it a name")
    if len(text) > longest:
        raise ConfigError(f"{what} has {len(text):,} characters; {longest:,} at most")
    hidden = next((each for each in text if not each.isprintable()), None)
    if hidden is not None:
        raise ConfigError(
            f"{what} {_quoted(text)} has the character U+{ord(hidden):04X}, which is not printed; "
            "leave it out"
        )
    return text


def plain_name(text: str, what: str, *, longest: int = _LONGEST_NAME) -> str:
    """The text, checked: a shell or markup does not interpret any of its characters.

    Args:
        text: the name.
        what: what it is of, in messages.
        longest: characters that it may have.

    Raises:
        ConfigError: it is not printable, or has a character that steers a shell or markup.
    """
    printable(text, what, longest=longest)
    steering = next((each for each in text if each in _STEERING), None)
    if steering is not None:
        raise ConfigError(
            f"{what} {_quoted(text)} has the character {steering}, which a shell or markup gives "
            "a meaning to; take letters, digits, blanks and _ - . , : + / ( ) @ = % #"
        )
    return text


def _quoted(text: str) -> str:
    shown = visible(text)
    return f"'{shown}'" if len(shown) <= _LONGEST_NAME else f"'{shown[:_LONGEST_NAME]}...'"


def _check_name(value: str, info: ValidationInfo) -> str:
    return plain_name(value, str(info.field_name))


def _check_text(value: str, info: ValidationInfo) -> str:
    return printable(value, str(info.field_name))


PlainName = Annotated[str, AfterValidator(_check_name)]
"""A name in a file, for a pydantic model."""

PrintableText = Annotated[str, AfterValidator(_check_text)]
"""A path in a file, for a pydantic model."""
