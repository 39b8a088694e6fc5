"""A plan for people, as renderables of rich, and for programs, as one JSON document.

Says in every view that nothing was measured. Does not know how wide the terminal is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autotune.hardware import DEVICE_KINDS
from autotune.pareto import Pick
from autotune.plan import Candidate, Plan
from autotune.report import format_gib, plain_table, training_words

__all__ = [
    "explanation_json",
    "plan_assumptions",
    "plan_json",
    "render_explanation",
    "render_plan",
]

_NUM_FASTER = 3
"""Faster strategies that do not fit which an explanation names."""

_BAR_WIDTH = 30
"""Characters that stand for the whole memory of a device."""

_LEGEND = (
    "predicted GiB: what the allocator is expected to reserve on the worst rank, and between what "
    "bounds. free: device memory left at that time. loss: neutral trains as the reference does; "
    "changing can change what is learned."
)


def render_plan(plan: Plan) -> RenderableType:
    """The predicted front, and what it rests on."""
    return Group(*_header(plan), "", _front_table(plan))


def render_explanation(plan: Plan, which: Pick) -> RenderableType:
    """What the memory of one pick goes to, and why nothing faster fits."""
    candidate = plan.picks[which]
    prediction = candidate.prediction
    parts: list[RenderableType] = [
        Text.assemble((f"Pick {which}: ", "bold green"), str(candidate.strategy)),
        Text(
            f"Its peak comes at: {prediction.moment}. The worst device holds then, of "
            f"{format_gib(plan.hardware.device_memory_bytes)} GiB:"
        ),
        "",
        _parts_table(plan, candidate),
        Text(_host_words(plan, candidate)),
        "",
    ]
    faster = plan.faster_but_too_large(candidate, _NUM_FASTER)
    if not faster:
        parts.append(Text("No strategy of the space is predicted to be faster and not to fit."))
        return Group(*parts)
    table = plain_table("The next faster strategies do not fit")
    table.add_column("strategy", overflow="fold", min_width=20)
    table.add_column("tokens/s", justify="right", no_wrap=True)
    table.add_column("why not", overflow="fold", min_width=20)
    for other, reason in faster:
        speed = f"{other.prediction.tokens_per_second:,.0f}"
        table.add_row(Text(str(other.strategy)), speed, Text(reason))
    return Group(*parts, table)


def plan_json(plan: Plan) -> dict[str, Any]:
    """A plan as one JSON document.

    Returns:
        - `measured`: false, always.
        - `workload`, `hardware` (of one host), `num_nodes`, `space`, `headroom`: what was asked.
        - `assumptions`: sentences.
        - `limit_bytes` of each device, `host_memory_bytes` of each host.
        - `num_strategies`: how many were predicted.
        - `reference`: the strategy that loss classes refer to.
        - `front`: fastest first, each with `strategy`, `strategy_in_words`, `loss_class`,
          `prediction` (its fields are those of `Prediction`, host and disk of all hosts together),
          and the shares `mfu` and `headroom`.
        - `picks`: place in the front, from 0, by `throughput`, `memory` and `balanced`.
    """
    return {
        "measured": False,
        "workload": plan.workload.to_dict(),
        "hardware": asdict(plan.spec.host),
        "num_nodes": plan.spec.num_nodes,
        "space": plan.question.space_name,
        "headroom": plan.question.headroom,
        "assumptions": list(plan_assumptions(plan)),
        "limit_bytes": plan.question.memory_limit_bytes,
        "host_memory_bytes": plan.spec.host.host_memory_bytes,
        "num_strategies": len(plan.candidates),
        "reference": plan.reference.to_dict(),
        "front": [_record(plan, candidate) for candidate in plan.front],
        "picks": {str(which): plan.front.index(c) for which, c in plan.picks.items()},
    }


def explanation_json(plan: Plan, which: Pick) -> dict[str, Any]:
    """The same as `render_explanation` says, for `--json`.

    Returns:
        `pick`, `moment`, `breakdown_bytes` of a device (context included), `host_memory_bytes` of
        one host, `disk_bytes`, and `faster_but_too_large`: strategies with `reason`.
    """
    candidate = plan.picks[which]
    return {
        "pick": str(which),
        "moment": candidate.prediction.moment,
        "breakdown_bytes": dict(_parts(candidate)),
        "host_memory_bytes": plan.host_bytes(candidate),
        "disk_bytes": candidate.prediction.disk_bytes,
        "faster_but_too_large": [
            _record(plan, other) | {"reason": reason}
            for other, reason in plan.faster_but_too_large(candidate, _NUM_FASTER)
        ],
    }


def _record(plan: Plan, candidate: Candidate) -> dict[str, Any]:
    return {
        "strategy": candidate.strategy.to_dict(),
        "strategy_in_words": str(candidate.strategy),
        "loss_class": str(plan.loss_class(candidate)),
        "prediction": asdict(candidate.prediction),
        "mfu": plan.mfu(candidate),
        "headroom": plan.headroom(candidate),
    }


def _header(plan: Plan) -> Iterator[Text]:
    workload, host = plan.workload, plan.spec.host
    yield Text(
        f"What would train {workload.model.name} best ({training_words(workload)}) on {plan.spec} "
        "with "
        f"{format_gib(host.device_memory_bytes)} GiB each?"
    )
    yield Text.assemble(
        ("Predicted, nothing was measured. ", "bold yellow"),
        f"{len(plan.candidates):,} strategies of the space {plan.question.space_name}, "
        f"{sum(map(plan.fits, plan.candidates)):,} of them are expected to fit.",
    )
    for sentence in plan_assumptions(plan):
        yield Text(f"- {sentence}")


def plan_assumptions(plan: Plan) -> Iterator[str]:
    """What the figures rest on, a sentence each."""
    spec, host = plan.spec, plan.spec.host
    yield (
        f"A strategy may use {format_gib(plan.question.memory_limit_bytes)} GiB of each device "
        f"(--headroom {plan.question.headroom:g})."
    )
    gib = format_gib(host.host_memory_bytes)
    if spec.has_assumed_host:
        yield (
            f"Host memory is assumed: {gib} GiB a host, three times that of its GPUs, 256 GiB a "
            "GPU at most; --host-memory says otherwise."
        )
    else:
        yield f"A host has {gib} GiB of memory."
    yield "Everything is assumed to be installed there: Liger, FlashAttention 2, a compiler, CUDA."
    source = "data sheet" if host.device_kind in DEVICE_KINDS else "given peak"
    yield f"Rates come from the {source}, times the shares of it that one H100 attained."
    if spec.num_nodes > 1:
        yield (
            "Memory holds for any number of hosts, but links between hosts are not modelled: "
            "tokens/s and MFU are optimistic, as if all GPUs were in one host."
        )


def _front_table(plan: Plan) -> Table:
    is_optimistic = plan.spec.num_nodes > 1
    table = plain_table("Predicted Pareto front")
    table.add_column("strategy", overflow="fold", min_width=16)
    table.add_column("tokens/s" + "\nat most" * is_optimistic, justify="right", no_wrap=True)
    table.add_column("MFU", justify="right", no_wrap=True)
    table.add_column("predic-\nted GiB", justify="right", no_wrap=True)
    table.add_column("between", justify="right", no_wrap=True)
    table.add_column("free", justify="right", no_wrap=True)
    has_host = any(candidate.prediction.host_memory_bytes for candidate in plan.front)
    if has_host:
        table.add_column("host\nGiB", justify="right", no_wrap=True)
    table.add_column("loss", no_wrap=True)
    for candidate in plan.front:
        prediction, strategy = candidate.prediction, Text(str(candidate.strategy))
        names = [str(which) for which, picked in plan.picks.items() if picked is candidate]
        if names:
            strategy.append(f"\npick: {', '.join(names)}", style="bold green")
        bounds = (prediction.peak_memory_lower_bytes, prediction.peak_memory_upper_bytes)
        table.add_row(
            strategy,
            f"{prediction.tokens_per_second:,.0f}",
            f"{plan.mfu(candidate):.0%}",
            format_gib(prediction.peak_memory_bytes),
            "-".join(map(format_gib, bounds)),
            f"{plan.headroom(candidate):.0%}",
            *([_or_dash(plan.host_bytes(candidate))] if has_host else []),
            str(plan.loss_class(candidate)),
        )
    table.caption = _LEGEND
    return table


def _or_dash(num_bytes: int) -> str:
    return format_gib(num_bytes) if num_bytes else "-"


def _parts(candidate: Candidate) -> list[tuple[str, int]]:
    """What a whole device holds at the peak, largest first."""
    prediction = candidate.prediction
    parts = dict(prediction.breakdown_bytes) | {"context": prediction.device_overhead_bytes}
    return sorted(((k, v) for k, v in parts.items() if v), key=lambda part: -part[1])


def _parts_table(plan: Plan, candidate: Candidate) -> Table:
    ranks, memory = plan.hardware.num_devices, plan.hardware.device_memory_bytes
    parts = _parts(candidate)
    total = sum(size for _, size in parts)
    table = plain_table("")
    table.add_column("part")
    table.add_column("GiB", justify="right", no_wrap=True)
    table.add_column(f"x {ranks}\nranks", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("of the device's memory", no_wrap=True)
    for name, size in parts:
        bar = "█" * max(1, round(_BAR_WIDTH * size / memory))
        row = (name, format_gib(size), format_gib(size * ranks), f"{size / total:.0%}")
        table.add_row(*row, Text(bar, style="cyan"))
    table.add_section()
    filled = min(_BAR_WIDTH, round(_BAR_WIDTH * total / memory))
    whole = Text("█" * filled, style="cyan").append("·" * (_BAR_WIDTH - filled))
    table.add_row("all", format_gib(total), format_gib(total * ranks), "100%", whole)
    return table


def _host_words(plan: Plan, candidate: Candidate) -> str:
    host, disk = plan.host_bytes(candidate), candidate.prediction.disk_bytes
    words = "It needs no host memory to offload to"
    if host:
        words = (
            f"It needs at least {format_gib(host)} GiB of memory on each host, of "
            f"{format_gib(plan.spec.host.host_memory_bytes)} GiB"
        )
    return words + (f", and {format_gib(disk)} GiB of disk." if disk else ", and no disk.")
