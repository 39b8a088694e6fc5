"""One strategy of a plan in detail: where its memory and its time go, and why nothing faster fits.

For people as renderables of rich, for programs as JSON values. Does not know the rest of a plan's
report.
"""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autotune.answer.figures import format_gib, format_gib_range, plain_table
from autotune.plan.plan import Candidate, Plan
from autotune.question.goal import Goal
from autotune.trials.breakdown import allocated_bytes, breakdown_rows
from autotune.trials.trial import Prediction

__all__ = ["explanation_json", "render_explanation"]

_NUM_FASTER = 3
"""Faster strategies that do not fit which an explanation names."""

_BAR_WIDTH = 20
"""Characters that stand for the whole memory of a device, or for a whole step."""


def render_explanation(plan: Plan, which: Goal) -> RenderableType:
    """The memory and the step time of one pick in parts, and why nothing faster fits."""
    candidate = plan.picks[which]
    prediction = candidate.prediction
    parts: list[RenderableType] = [
        Text.assemble((f"Pick {which}: ", "bold green"), str(candidate.strategy)),
        Text(
            f"Peak memory of the worst device, reached at: {prediction.moment}. share: "
            "fraction of that peak. bar: fraction of the device's "
            f"{format_gib(plan.hardware.device_memory_bytes)} GiB."
        ),
        "",
        _memory_table(plan, prediction),
        Text(_host_words(plan, candidate)),
        "",
        *_step_words(plan, candidate),
    ]
    faster = plan.faster_but_too_large(candidate, _NUM_FASTER)
    if not faster:
        parts.append(Text("The space has no faster strategy that does not fit."))
        return Group(*parts)
    table = plain_table("Faster strategies that do not fit")
    table.add_column("strategy", overflow="fold", min_width=20)
    table.add_column("tokens/s", justify="right", no_wrap=True)
    table.add_column("reason", overflow="fold", min_width=20)
    for other, reason in faster:
        speed = f"{other.prediction.tokens_per_second:,.0f}"
        table.add_row(Text(str(other.strategy)), speed, Text(reason))
    return Group(*parts, table)


def explanation_json(plan: Plan, which: Goal) -> dict[str, Any]:
    """The explanation of `render_explanation` as JSON values, for `--json`.

    Returns:
        `pick`, `moment`; `breakdown_bytes` of the worst device by row (`breakdown.py`) and its
        `peak_allocated_bytes`; `peak_reserved_bytes` and `peak_device_bytes`, each with its
        `expected` value and its bounds `lower` and `upper`; `step_parts_s`; `host_memory_bytes`
        and `disk_bytes` of one host; `peak_host_bytes` of one host with `expected`, `lower`,
        `upper` and the `save` of a checkpoint, which they include; and `faster_but_too_large`:
        strategies with `reason`.
    """
    candidate = plan.picks[which]
    prediction = candidate.prediction
    return {
        "pick": str(which),
        "moment": prediction.moment,
        "breakdown_bytes": breakdown_rows(prediction),
        "peak_allocated_bytes": allocated_bytes(prediction),
        "peak_reserved_bytes": {
            "expected": prediction.peak_memory_bytes,
            "lower": prediction.peak_memory_lower_bytes,
            "upper": prediction.peak_memory_upper_bytes,
        },
        "peak_device_bytes": {
            "expected": prediction.peak_device_bytes,
            "lower": prediction.peak_device_lower_bytes,
            "upper": prediction.peak_device_upper_bytes,
        },
        "step_parts_s": dict(prediction.step_parts_s),
        "host_memory_bytes": prediction.host_memory_bytes,
        "peak_host_bytes": {
            "expected": prediction.peak_host_bytes,
            "lower": prediction.host_memory_lower_bytes,
            "upper": prediction.peak_host_upper_bytes,
            "save": prediction.host_save_bytes,
        },
        "disk_bytes": prediction.disk_bytes,
        "faster_but_too_large": [
            plan.record(other) | {"reason": reason}
            for other, reason in plan.faster_but_too_large(candidate, _NUM_FASTER)
        ],
    }


def _memory_table(plan: Plan, prediction: Prediction) -> Table:
    """The parts of the peak, largest first, then the sums that torch and the driver show."""
    ranks, memory = plan.hardware.num_devices, plan.hardware.device_memory_bytes
    rows = {name: size for name, size in breakdown_rows(prediction).items() if size}
    total = prediction.peak_device_bytes
    table = plain_table("")
    table.add_column("part")
    table.add_column("GiB", justify="right", no_wrap=True)
    table.add_column("bounds", justify="right", no_wrap=True)
    table.add_column(f"× {ranks}", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("of device memory", no_wrap=True)
    for name, size in sorted(rows.items(), key=lambda row: -row[1]):
        sizes = (format_gib(size), "", format_gib(size * ranks), f"{size / total:.0%}")
        table.add_row(name, *sizes, _bar(size / memory))
    table.add_section()
    lower, upper = prediction.peak_memory_lower_bytes, prediction.peak_memory_upper_bytes
    over = prediction.device_overhead_bytes
    reserved, device = (lower, upper), (lower + over, upper + over)
    totals: tuple[tuple[str, int, tuple[int, int] | None], ...] = (
        ("allocated", allocated_bytes(prediction), None),
        ("reserved (with cache)", prediction.peak_memory_bytes, reserved),
        ("device (with context)", total, device),
    )
    for name, size, bounds in totals:
        words = format_gib_range(*bounds) if bounds else ""
        fraction = f"{size / total:.0%}"
        whole = _bar(size / memory, is_whole=True)
        table.add_row(name, format_gib(size), words, format_gib(size * ranks), fraction, whole)
    return table


def _step_words(plan: Plan, candidate: Candidate) -> list[RenderableType]:
    """The step time in parts; nothing if the prediction has no parts."""
    prediction = candidate.prediction
    parts = prediction.step_parts_s
    if not parts:
        return []
    bounds = ""
    if prediction.step_time_lower_s is not None and prediction.step_time_upper_s is not None:
        bounds = (
            f", bounds {_seconds(prediction.step_time_lower_s)} to "
            f"{_seconds(prediction.step_time_upper_s)}"
        )
    table = plain_table("")
    table.add_column("part of a step")
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("of the step", no_wrap=True)
    for name, seconds in sorted(parts.items(), key=lambda part: -part[1]):
        fraction = seconds / prediction.step_time_s
        words = f"{name} (not overlapped)" if name == "communication" else name
        table.add_row(words, f"{seconds:.3g}", f"{fraction:.0%}", _bar(fraction))
    speed = f"{prediction.tokens_per_second:,.0f} tokens/s"
    return [
        Text(
            f"A step takes {_seconds(prediction.step_time_s)}{bounds}: {speed}, "
            f"MFU {plan.mfu(candidate):.1%}. share, bar: fraction of it."
        ),
        "",
        table,
        "",
    ]


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s"


def _bar(fraction: float, *, is_whole: bool = False) -> Text:
    """A bar of so much of the full width; with `is_whole` the rest of it is dotted."""
    filled = min(_BAR_WIDTH, max(1, round(_BAR_WIDTH * fraction)))
    bar = Text("█" * filled, style="cyan")
    return bar.append("·" * (_BAR_WIDTH - filled)) if is_whole else bar


def _host_words(plan: Plan, candidate: Candidate) -> str:
    """The host memory and the disk that a candidate needs, in sentences."""
    prediction, disk = candidate.prediction, candidate.prediction.disk_bytes
    words = "Nothing is offloaded to host memory."
    if prediction.host_memory_bytes:
        bounds = (prediction.host_memory_lower_bytes, prediction.peak_host_upper_bytes)
        words = (
            f"Each host needs {format_gib(prediction.peak_host_bytes)} GiB of memory (bounds "
            f"{format_gib_range(*bounds)}) of the {format_gib(plan.question.host_limit_bytes)} "
            "GiB that a strategy may use."
        )
    if prediction.host_save_bytes:
        save = format_gib(prediction.host_save_bytes)
        words += f" Saving a checkpoint takes {save} GiB of host memory."
    if disk:
        free = format_gib(plan.hardware.nvme_free_bytes)
        words += f" Each host needs {format_gib(disk)} GiB of disk, of {free} GiB."
    return words
