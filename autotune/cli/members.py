"""Flags that take one of a closed set of words."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

__all__ = ["member"]

Kind = TypeVar("Kind", bound=StrEnum)


def member(enumeration: type[Kind], value: str, flag: str) -> Kind:
    """One of a closed set, or a message that names the flag and the set.

    Raises:
        ConfigError: the set has no such member.
    """
    from autotune.errors import ConfigError

    try:
        return enumeration(value)
    except ValueError:
        choices = ", ".join(str(each) for each in enumeration)
        raise ConfigError(f"{flag} {value!r}: choose from {choices}") from None
