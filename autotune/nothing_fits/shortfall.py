"""The answer where nothing fits: which memory is short by how much, and the nearest strategy.

Does not predict: it is handed predictions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autotune.answer.figures import format_gib
from autotune.knob_values import LossClass
from autotune.machine.hardware import Hardware
from autotune.question.limits import Limits
from autotune.space.strategy import Strategy
from autotune.trials.breakdown import breakdown_rows
from autotune.trials.trial import Prediction

__all__ = ["Alternative", "Shortfall", "render_shortfall", "shortfall_json"]

_NO_LIMIT = 2**62


@dataclass(frozen=True, kw_only=True, slots=True)
class Alternative:
    """Another question that fits, as its own prediction says."""

    words: str
    """What is changed."""
    command: str
    """The whole command line that asks it, for a shell."""
    strategy: Strategy
    """One that fits."""
    prediction: Prediction
    """The prediction of `strategy`."""
    loss_class: LossClass
    """The loss class of `strategy`, against the reference of its own question."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shortfall:
    """Why nothing of a space fits, in figures."""

    closest: Sequence[tuple[Strategy, Prediction]]
    """The strategies that miss the least memory, least first; empty where there are none."""
    limits: Limits
    """Room on each device, on the host and on disk."""
    hardware: Hardware
    """What the question ran on."""
    alternatives: Sequence[Alternative]
    """What fits, the cheapest change first."""
    uncertainty: str | None = None
    """Why activations are counted as another model's; None where they are not."""
    remarks: tuple[str, ...] = ()
    """What is to be known of what is trained, a sentence or two each."""


def render_shortfall(shortfall: Shortfall) -> RenderableType:
    """What is missing for the closest strategies, and what would fit instead, for people."""
    closest, limits = shortfall.closest, shortfall.limits
    if not closest:
        return Text("Nothing fits: the search space has no strategy that this question allows.")
    _, prediction = closest[0]
    first = Text.assemble(
        (f"Nothing fits: {_in_words(_shortage(prediction, limits))} missing.", "bold red"),
        _needs(prediction, limits, shortfall.hardware),
    )
    parts: list[RenderableType] = [first, "", _closest_table(closest, limits)]
    if prediction.breakdown_bytes:
        parts += ["", _breakdown(prediction)]
    if shortfall.uncertainty:
        parts.append(
            Text(f"Activation memory is that of the most similar preset: {shortfall.uncertainty}.")
        )
    parts += ["", *_nearest_fits(shortfall.alternatives)]
    parts += map(Text, shortfall.remarks)
    return Group(*parts)


def shortfall_json(shortfall: Shortfall) -> dict[str, Any]:
    """What `render_shortfall` says, for `--json`.

    Keys: `front` (empty, as in a report), `limit_bytes` of each device, `host_limit_bytes` that
    may be used, `missing_bytes` of the closest strategy, these by `missing_by_place` (`device`,
    `host`, `disk`), `closest` (strategies with predictions, least first), and `alternatives`,
    the cheapest change first: `change` in words, `command` for a shell, the `strategy` that fits
    with its `prediction` and `loss_class`.
    """
    closest, limits = shortfall.closest, shortfall.limits
    of_closest = closest[0][1] if closest else None
    missing = _shortage(of_closest, limits) if of_closest else {}
    return {
        "front": [],
        "limit_bytes": limits.device_bytes,
        "host_limit_bytes": limits.host_bytes,
        "missing_bytes": sum(missing.values()),
        "missing_by_place": missing,
        "closest": [
            {"strategy": strategy.to_dict(), "prediction": asdict(prediction)}
            for strategy, prediction in closest
        ],
        "alternatives": [
            {
                "change": other.words,
                "command": other.command,
                "strategy": other.strategy.to_dict(),
                "loss_class": str(other.loss_class),
                "prediction": asdict(other.prediction),
            }
            for other in shortfall.alternatives
        ],
    }


def _shortage(prediction: Prediction, limits: Limits) -> dict[str, int]:
    """Bytes that are missing of each memory, by its name."""
    wide = Limits(device_bytes=_NO_LIMIT, host_bytes=_NO_LIMIT, disk_bytes=_NO_LIMIT)
    return {
        limit.name.removesuffix("_bytes"): prediction.missing_bytes(
            replace(wide, **{limit.name: getattr(limits, limit.name)})
        )
        for limit in fields(Limits)
    }


_PLACES = {"device": "of each device's memory", "host": "of host memory", "disk": "of disk"}


def _in_words(shortage: Mapping[str, int]) -> str:
    """Such as `1.0 GiB of host memory are`."""
    parts = [
        f"{format_gib(size)} GiB {_PLACES[place]}" for place, size in shortage.items() if size
    ]
    return f"{' and '.join(parts)} are" if parts else "0 GiB are"


def _needs(prediction: Prediction, limits: Limits, hardware: Hardware) -> str:
    words = (
        f" The closest strategy needs {format_gib(prediction.peak_device_bytes)} GiB on each "
        f"device, and a trial may use {format_gib(limits.device_bytes)} GiB of "
        f"{format_gib(hardware.device_memory_bytes)} GiB ({hardware})."
    )
    if prediction.host_memory_bytes:
        words += (
            f" Its offloaded states need {format_gib(prediction.peak_host_bytes)} GiB of host "
            f"memory, at least {format_gib(prediction.host_memory_lower_bytes)} GiB and at most "
            f"{format_gib(prediction.peak_host_upper_bytes)} GiB, and a trial may use "
            f"{format_gib(limits.host_bytes)} GiB of "
            f"{format_gib(hardware.host_memory_bytes)} GiB (--host-headroom)."
        )
    if prediction.disk_bytes:
        words += (
            f" It needs {format_gib(prediction.disk_bytes)} GiB of disk; --nvme-path has "
            f"{format_gib(limits.disk_bytes)} GiB free."
        )
    return words


def _closest_table(closest: Sequence[tuple[Strategy, Prediction]], limits: Limits) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("closest strategies", overflow="fold", min_width=20)
    for heading in ("device\nGiB", "missing\nGiB", "host\nGiB", "missing\nGiB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for strategy, prediction in closest:
        missing = _shortage(prediction, limits)
        sizes = (
            *(prediction.peak_device_bytes, missing["device"]),
            *(prediction.peak_host_bytes, missing["host"]),
        )
        table.add_row(Text(str(strategy)), *map(format_gib, sizes))
    return table


def _breakdown(prediction: Prediction) -> Text:
    """What the closest strategy's peak is made of, largest first."""
    ordered = sorted(breakdown_rows(prediction).items(), key=lambda item: -item[1])
    words = ", ".join(f"{name} {format_gib(size)} GiB" for name, size in ordered if size)
    moment = f" (at its peak: {prediction.moment})" if prediction.moment else ""
    return Text(f"The closest needs{moment}: {words}.")


def _nearest_fits(alternatives: Sequence[Alternative]) -> Iterator[Text]:
    if not alternatives:
        yield Text(
            "No change of space, method, sequence length or number of devices is predicted to "
            "fit. Use a smaller model, or devices with more memory."
        )
        return
    yield Text("Predicted to fit, cheapest change first:")
    for other in alternatives:
        words = (
            f"  {other.words}: {format_gib(other.prediction.peak_device_bytes)} GiB on a device"
        )
        if other.prediction.host_memory_bytes:
            words += f", {format_gib(other.prediction.peak_host_bytes)} GiB of host memory"
        yield Text(f"{words} ({other.strategy})")
        # Never wrapped, so that it can be copied.
        yield Text(f"    {other.command}", no_wrap=True, overflow="ignore")
