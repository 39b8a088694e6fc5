"""Figures and tables in the form in which all answers show them.

Does not know which figures an answer has.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from autotune.trials.interval import Interval
from autotune.trials.trial import Prediction

__all__ = [
    "format_duration",
    "format_gib",
    "format_gib_range",
    "format_interval",
    "format_millijoules",
    "format_peak",
    "format_percent",
    "format_speed",
    "joined",
    "plain_table",
]


def plain_table(title: str) -> Table:
    """A table in the style of all answers.

    Args:
        title: its first line is bold; empty for none.
    """
    first, newline, rest = title.partition("\n")
    return Table(
        title=Text.assemble((first, "bold"), newline, rest) if title else None,
        title_justify="left",
        title_style="",
        caption_justify="left",
        caption_style="dim",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )


def format_gib(num_bytes: float) -> str:
    """Bytes in GiB, three figures or more."""
    gib = num_bytes / 2**30
    return f"{gib:.{0 if gib >= 99.95 else 1 if gib >= 9.995 else 2}f}"


def format_peak(prediction: Prediction) -> str:
    """Predicted GiB, and its bounds in a second line."""
    if not prediction.is_memory_known:
        return "-"
    bounds = (prediction.peak_memory_lower_bytes, prediction.peak_memory_upper_bytes)
    return f"{format_gib(prediction.peak_memory_bytes)}\n{format_gib_range(*bounds)}"


def format_gib_range(lower_bytes: float, upper_bytes: float) -> str:
    """Two bounds in GiB."""
    return f"{format_gib(lower_bytes)}-{format_gib(upper_bytes)}"


def format_speed(prediction: Prediction) -> str:
    """Predicted tokens/s, and its bounds in a second line if they are known."""
    if not prediction.is_time_known:
        return "-"
    speed, bounds = f"{prediction.tokens_per_second:,.0f}", prediction.tokens_per_second_bounds
    return speed if bounds is None else f"{speed}\n{_short(bounds[0])}-{_short(bounds[1])}"


def _short(number: float) -> str:
    """Three figures, with k for thousands and M for millions."""
    for unit, word in ((1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * unit:
            scaled = number / unit
            return f"{scaled:.{0 if scaled >= 100 else 1 if scaled >= 10 else 2}f}{word}"
    return f"{number:.0f}"


def format_interval(interval: Interval) -> str:
    """A mean, and its half width in a second line unless that exceeds the mean."""
    if interval.relative_half_width >= 1:
        return f"{interval.mean:,.0f}"
    return f"{interval.mean:,.0f}\n± {interval.half_width:,.0f}"


def format_duration(seconds: float) -> str:
    """A wall time in the two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def format_millijoules(joules: float | None) -> str:
    """Joules in millijoules, three figures or more; a dash if they are unknown."""
    if joules is None:
        return "-"
    millijoules = 1000 * joules
    decimals = 0 if millijoules >= 100 else 1 if millijoules >= 10 else 2
    return f"{millijoules:,.{decimals}f}"


def format_percent(fraction: float | None) -> str:
    """A fraction in whole percent; a dash if it is unknown."""
    return "-" if fraction is None else f"{fraction:.0%}"


def joined(numbers: Sequence[int]) -> str:
    """The numbers of trials, in words."""
    *first, last = map(str, numbers)
    return f"trials {', '.join(first)} and {last}" if first else f"trial {last}"
