"""What becomes of a record in the hands of others: parts removed, retyped, enlarged, nested.

For property tests of readers. Each mutation leaves most of the record as it is, so that a reader
gets as far as the part that is wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from autotune.errors import AutotuneError

__all__ = ["NASTY", "many", "mutations", "refusal"]

NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 2**31, 2**63, -(2**63), 10**20, 10**400, 0.5, -0.0, 1e-300),
    *(1e300, -1e300, float("inf"), float("nan")),
    *(
        "",
        " ",
        "x",
        "0",
        "1e9",
        "a\nb",
        "\x1b[31m",
        "\u202eabc",
        "[red]",
        "$(touch x)",
        "`x`",
        "x" * 5000,
    ),
    *("<script>", "\ud800", "a\x00b", "\u0663", "../..", "null", "cpu", "full", "none"),
    *([], {}, [None], [[]], {"": 1}, {"x": {}}, [1, "a", None], ["x"] * 300),
)
"""Values that no reader expects, and some that another one does."""


def many(examples: int = 75) -> settings:
    """The same examples each time, none kept: a suite must not depend on its last run."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def mutations(draw: st.DrawFn, record: Any, most: int = 2) -> Any:
    """The record with up to `most` of its parts changed; keys of mappings are text."""
    changed = copy.deepcopy(record)
    for _ in range(draw(st.integers(1, most))):
        changed = _changed(draw, changed)
    return changed


def _changed(draw: st.DrawFn, record: Any) -> Any:
    place = draw(st.sampled_from(_places(record)))
    if not place:
        # A copy: what is changed after it must not change the next example.
        other = copy.deepcopy(draw(st.sampled_from(NASTY)))
        return other if draw(st.booleans()) else [record]
    inner = record
    for key in place[:-1]:
        inner = inner[key]
    key = place[-1]
    match draw(st.sampled_from(("remove", "replace", "enlarge", "nest", "rename", "add"))):
        case "remove":
            del inner[key]
        case "replace":
            inner[key] = copy.deepcopy(draw(st.sampled_from(NASTY)))
        case "enlarge":
            inner[key] = _enlarged(draw, inner[key])
        case "nest":
            inner[key] = draw(st.sampled_from(([inner[key]], {"x": inner[key]}, str(inner[key]))))
        case "rename" if isinstance(inner, dict):
            inner[f"{key}x"] = inner.pop(key)
        case "add" if isinstance(inner, dict):
            inner[draw(st.sampled_from(("x", "", "\x1b", "__class__")))] = 1
    return record


def _enlarged(draw: st.DrawFn, value: Any) -> Any:
    factor = draw(st.sampled_from((-1, 3, 1000, 10**9, 10**30)))
    if isinstance(value, bool) or value is None:
        return factor
    if isinstance(value, int | float):
        return value * factor
    return (
        value * 3
        if isinstance(value, str | list)
        else {**value, **{f"k{i}": i for i in range(300)}}
    )


def _places(record: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to all parts, as keys and indices."""
    places = [before]
    if isinstance(record, dict):
        for key, value in record.items():
            places += _places(value, (*before, key))
    elif isinstance(record, list):
        for index, value in enumerate(record):
            places += _places(value, (*before, index))
    return places


def refusal(read: Callable[..., object], *arguments: object) -> str | None:
    """How a reader refuses, None where it does not; fails on a message of several lines.

    Whatever else it raises passes: that is the fault which is looked for.
    """
    try:
        read(*arguments)
    except AutotuneError as error:
        words = str(error)
    else:
        return None
    assert words.isprintable(), words
    assert len(words) < 2_000
    return words
