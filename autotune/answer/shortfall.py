"""The answer where nothing fits: what is missing, and the nearest thing that would fit.

Does not predict: it is handed predictions, and says which others to ask for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autotune.answer.report import format_gib
from autotune.machine.hardware import DEVICE_KINDS, DeviceType, Hardware
from autotune.question.presets import PRESETS
from autotune.question.workload import Method, Workload, load_model_shape
from autotune.space.strategy import Strategy
from autotune.trials.breakdown import breakdown_rows
from autotune.trials.trial import Prediction

__all__ = ["nothing_fits", "related_questions", "shortfall_json"]

_MOST_DEVICES = 8
"""Devices of one host."""

_SHORTEST_SEQ_LEN = 128


def related_questions(
    workload: Workload, hardware: Hardware
) -> Iterator[tuple[str, Workload, Hardware]]:
    """Questions near this one that need less memory, the nearest kind of change first.

    Yields:
        The change in words, and the changed question. First adapters, then shorter samples, then
        more devices, then smaller presets.
    """
    is_cuda = hardware.device_type is DeviceType.CUDA
    methods = [Method.FULL, Method.LORA, *([Method.QLORA] if is_cuda else [])]
    if workload.method in methods:
        for method in methods[methods.index(workload.method) + 1 :]:
            yield f"--method {method}", replace(workload, method=method), hardware
    seq_len = workload.seq_len // 2
    while seq_len >= _SHORTEST_SEQ_LEN:
        yield f"--seq-len {seq_len}", replace(workload, seq_len=seq_len), hardware
        seq_len //= 2
    num_devices = 2 * hardware.num_devices
    while is_cuda and num_devices <= _MOST_DEVICES:
        more = replace(hardware, num_devices=num_devices)
        yield f"{more} instead of {hardware.num_devices}", workload, more
        num_devices *= 2
    size = workload.model.num_parameters
    smaller = [shape for shape in map(load_model_shape, PRESETS) if shape.num_parameters < size]
    for shape in sorted(smaller, key=lambda shape: -shape.num_parameters):
        seq_len = min(workload.seq_len, shape.max_position_embeddings)
        # Names of linear layers differ between architectures; all of them exist in each.
        changed = replace(workload, model=shape, seq_len=seq_len, lora_targets=("all-linear",))
        yield f"--model {shape.name}", changed, hardware


def nothing_fits(
    closest: Sequence[tuple[Strategy, Prediction]],
    *,
    limit_bytes: int,
    host_limit_bytes: int,
    hardware: Hardware,
    alternatives: Mapping[str, Prediction],
) -> RenderableType:
    """What is missing for the closest strategies, and what would fit instead.

    Args:
        closest: the strategies that miss the least memory, with their predictions, least first.
        limit_bytes: device memory that a trial may use: the device's, less the headroom.
        host_limit_bytes: memory of the host that it may use, likewise.
        hardware: what the question ran on.
        alternatives: predictions of other questions that fit, by the change in words: those of
            `related_questions`, nearest first.
    """
    if not closest:
        return Text("Nothing fits: the search space has no strategy that this question allows.")
    _, prediction = closest[0]
    peak, host = prediction.peak_device_bytes, hardware.host_memory_bytes
    limits = {"device_bytes": limit_bytes, "host_bytes": host_limit_bytes}
    limits["disk_bytes"] = hardware.nvme_free_bytes
    missing = prediction.missing_bytes(**limits)
    words = (
        f" The closest strategy needs {format_gib(peak)} GiB on each device, and a trial may use "
        f"{format_gib(limit_bytes)} GiB of {format_gib(hardware.device_memory_bytes)} GiB "
        f"({hardware})."
    )
    if prediction.host_memory_bytes:
        words += (
            f" What it offloads needs {format_gib(prediction.peak_host_bytes)} GiB of host "
            f"memory, at least {format_gib(prediction.host_memory_lower_bytes)} GiB and at most "
            f"{format_gib(prediction.peak_host_upper_bytes)} GiB, and it may use "
            f"{format_gib(host_limit_bytes)} GiB of {format_gib(host)} GiB (--host-headroom)."
        )
    if prediction.disk_bytes:
        words += (
            f" It needs {format_gib(prediction.disk_bytes)} GiB of disk, and --nvme-path has "
            f"{format_gib(hardware.nvme_free_bytes)} GiB free."
        )
    first = Text.assemble(
        (f"Nothing fits: {format_gib(missing)} GiB are missing.", "bold red"), words
    )
    parts: list[RenderableType] = [first, "", _closest_table(closest, limits)]
    if prediction.breakdown_bytes:
        parts += ["", _breakdown(prediction)]
    parts += ["", *_nearest_fits(peak, limit_bytes, hardware, alternatives)]
    return Group(*parts)


def shortfall_json(
    closest: Sequence[tuple[Strategy, Prediction]],
    *,
    limit_bytes: int,
    host_limit_bytes: int,
    hardware: Hardware,
    alternatives: Mapping[str, Prediction],
) -> dict[str, Any]:
    """The same as `nothing_fits` says, for `--json`.

    Keys: `front` (empty, as in a report), `limit_bytes` of each device, `host_memory_bytes`, and
    of these `host_limit_bytes`, which a trial may use,
    `missing_bytes` of the closest strategy, `closest` (strategies with predictions, least first),
    `alternatives` (predictions by change).
    """
    return {
        "front": [],
        "limit_bytes": limit_bytes,
        "host_memory_bytes": hardware.host_memory_bytes,
        "host_limit_bytes": host_limit_bytes,
        "missing_bytes": closest[0][1].missing_bytes(
            device_bytes=limit_bytes,
            host_bytes=host_limit_bytes,
            disk_bytes=hardware.nvme_free_bytes,
        ),
        "closest": [
            {"strategy": strategy.to_dict(), "prediction": asdict(prediction)}
            for strategy, prediction in closest
        ],
        "alternatives": {words: asdict(other) for words, other in alternatives.items()},
    }


def _closest_table(
    closest: Sequence[tuple[Strategy, Prediction]], limits: Mapping[str, int]
) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("closest strategies", overflow="fold", min_width=20)
    table.add_column("device\nGiB", justify="right", no_wrap=True)
    table.add_column("host\nGiB", justify="right", no_wrap=True)
    table.add_column("missing\nGiB", justify="right", no_wrap=True)
    for strategy, prediction in closest:
        missing = prediction.missing_bytes(**limits)
        sizes = (prediction.peak_device_bytes, prediction.peak_host_bytes, missing)
        table.add_row(Text(str(strategy)), *map(format_gib, sizes))
    return table


def _breakdown(prediction: Prediction) -> Text:
    """What the closest strategy's peak is made of, largest first."""
    ordered = sorted(breakdown_rows(prediction).items(), key=lambda item: -item[1])
    words = ", ".join(f"{name} {format_gib(size)} GiB" for name, size in ordered if size)
    moment = f" (at its peak: {prediction.moment})" if prediction.moment else ""
    return Text(f"The closest needs{moment}: {words}.")


def _nearest_fits(
    peak: int, limit_bytes: int, hardware: Hardware, alternatives: Mapping[str, Prediction]
) -> Iterator[Text]:
    lines = []
    for words, other in alternatives.items():
        line = f"{words}: predicted {format_gib(other.peak_device_bytes)} GiB"
        if other.host_memory_bytes:
            line += f", with {format_gib(other.peak_host_bytes)} GiB of host memory"
        lines.append(line)
    # The same share of the larger device stays free.
    needed = peak * hardware.device_memory_bytes / limit_bytes
    larger = [kind for kind in DEVICE_KINDS.values() if kind.memory_bytes >= needed]
    if larger and peak > limit_bytes and hardware.device_type is DeviceType.CUDA:
        kind = min(larger, key=lambda kind: kind.memory_bytes)
        memory = format_gib(kind.memory_bytes)
        lines.append(f"{hardware.num_devices} x {kind.name}: {memory} GiB each")
    if not lines:
        yield Text("No single change is known to fit: combine a smaller model with --method lora.")
        return
    yield Text("The nearest that would fit:")
    for line in lines:
        yield Text(f"  {line}")
