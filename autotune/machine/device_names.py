"""Matches a device name that a person wrote to a kind of device, or says why none matches.

Does not know how many there are, nor how a file describes others.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from autotune.machine.device_kinds import DEVICE_KINDS, DeviceKind, kind_of
from autotune.machine.unsupported_devices import UnsupportedDevice, unsupported_device

__all__ = ["KNOWN_KINDS", "named_kind", "shortened"]

KNOWN_KINDS = ", ".join(DEVICE_KINDS)

_LONGEST_NAME = 80
"""Characters of a name that a message repeats."""

_LEAST_LIKENESS = 0.6
"""Least similarity of a misspelt name to the one that was meant, by `difflib`, 0 to 1."""


def shortened(text: str) -> str:
    """As much of a name as a message repeats."""
    return text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}..."


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


_BY_PLAIN_NAME = {_plain(kind.name): kind for kind in DEVICE_KINDS.values()}


def named_kind(name: str) -> DeviceKind | UnsupportedDevice | str:
    """The device kind that a name stands for whole, or in words why there is none.

    Case, blanks and dashes do not matter. The driver's name will do, and so will a name without
    its memory where there is only one size of it.
    """
    wanted = _plain(name)
    whole = _BY_PLAIN_NAME.get(wanted) or kind_of(name)
    if whole is not None:
        return whole
    sizes = [kind for kind in DEVICE_KINDS.values() if wanted == _plain(_without_memory(kind))]
    if len(sizes) == 1:
        return sizes[0]
    if sizes:
        several = ", ".join(
            kind.name
            for kind in DEVICE_KINDS.values()
            if _plain(_without_memory(kind)).startswith(wanted)
        )
        return f"{name} may be any of {several}: choose one"
    if len(wanted) > _LONGEST_NAME:
        return f"there is no device kind {shortened(name)!r}; known are {KNOWN_KINDS}"
    unsupported = unsupported_device(name)
    if unsupported is not None:
        return unsupported
    hint = next(_near(wanted), None)
    words = f"did you mean {hint}? Known are {KNOWN_KINDS}" if hint else f"known are {KNOWN_KINDS}"
    return f"there is no device kind {name!r}; {words}"


def _without_memory(kind: DeviceKind) -> str:
    """The name of a product that comes with several sizes of memory: A100 of A100-80GB."""
    return re.sub(r"-[0-9]+GB", "", kind.name)


def _near(wanted: str) -> Iterator[str]:
    """Kinds whose name was mis-spelt, nearest first.

    Another number is another product (A800, RTX4080, H20), unless its digits are in another order
    or one was typed twice; so are other letters.
    """
    names = {_plain(_without_memory(kind)): kind.name for kind in reversed(DEVICE_KINDS.values())}
    names |= {_plain(kind.name): kind.name for kind in DEVICE_KINDS.values()}
    for near in difflib.get_close_matches(wanted, names, n=5, cutoff=_LEAST_LIKENESS):
        ours, theirs = re.sub("[^0-9]", "", wanted), re.sub("[^0-9]", "", near)
        is_typed_twice = len(ours) > len(theirs) and _once(ours) == _once(theirs)
        is_same_make = sorted(_letters(wanted)) == sorted(_letters(near))
        if is_same_make and (is_typed_twice or sorted(ours) == sorted(theirs)):
            yield names[near]


def _once(digits: str) -> str:
    """Each digit once where it stands several times in a row."""
    return re.sub(r"(.)\1+", r"\1", digits)


def _letters(name: str) -> str:
    """The parts of a plain name; the unit GB of its memory is left out."""
    return re.sub("[0-9]", "", name).removesuffix("gb").removesuffix("g")
