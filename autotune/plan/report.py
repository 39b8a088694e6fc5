"""The report of a plan: renderables of rich for people, one JSON document for programs.

Says in every view that nothing was measured. Does not know how wide the terminal is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autotune.answer.report import (
    format_gib,
    format_gib_range,
    format_speed,
    plain_table,
    training_words,
)
from autotune.machine.hardware import DEVICE_KINDS
from autotune.plan.plan import Plan
from autotune.trials.trial import Prediction

__all__ = ["plan_assumptions", "plan_json", "render_plan"]

_LEGEND = (
    "predicted GiB: what the allocator is expected to reserve on the worst rank, and between what "
    "bounds; with ? an upper one does not fit, of device or host. ~: by a formula; all else by "
    "running the allocator over what the code of model and engine allocates. free: device memory "
    "left at that time. host GiB: of all ranks of a host, with the save of a checkpoint, and at "
    "most. loss: neutral trains as the reference does; changing can change what is learned."
)


def render_plan(plan: Plan) -> RenderableType:
    """The predicted front, and what it rests on."""
    return Group(*_header(plan), "", _front_table(plan))


def plan_json(plan: Plan) -> dict[str, Any]:
    """A plan as one JSON document.

    Returns:
        - `measured`: false, always.
        - `workload`, `hardware` (of one host), `num_nodes`, `space`, `headroom`,
          `host_headroom`: what was asked.
        - `assumptions`: sentences.
        - `calibrated_from`: null, or the `study`, its `hardware`, `num_trials`, and whether
          `step_time` was learned from it besides memory.
        - `num_strategies`: how many were predicted; `num_surely_fitting`: of these, by a formula
          and its upper bound; `num_in_doubt`: those that are expected to fit and whose upper
          bound does not.
        - `quick`: whether nothing was simulated. Then only strategies that surely fit are on the
          front, unless there are none. `is_simulated` of a `prediction` says which ones were.
        - `limit_bytes` of each device, `host_memory_bytes` of each host, and of these
          `host_limit_bytes`, which a strategy may use.
        - `reference`: the strategy that loss classes refer to.
        - `front`: fastest first, each with `strategy`, `strategy_in_words`, `loss_class`,
          `prediction` (its fields are those of `Prediction`), `surely_fits` (whether its upper
          bounds fit too) and the shares `mfu` and `headroom`.
        - `picks`: place in the front, from 0, by `throughput`, `memory` and `balanced`.

        With `--out` the command adds `exported`: the `pick` and its `folder`.
    """
    return {
        "measured": False,
        "workload": plan.workload.to_dict(),
        "hardware": asdict(plan.spec.host),
        "num_nodes": plan.spec.num_nodes,
        "space": plan.question.space_name,
        "headroom": plan.question.headroom,
        "host_headroom": plan.question.host_headroom,
        "assumptions": list(plan_assumptions(plan)),
        "calibrated_from": plan.calibration.to_dict() if plan.calibration is not None else None,
        "limit_bytes": plan.question.memory_limit_bytes,
        "host_memory_bytes": plan.spec.host.host_memory_bytes,
        "host_limit_bytes": plan.question.host_limit_bytes,
        "num_strategies": len(plan.candidates),
        "num_surely_fitting": plan.num_surely_fitting,
        "num_in_doubt": plan.num_in_doubt,
        "quick": plan.is_quick,
        "reference": plan.reference.to_dict(),
        "front": [plan.record(candidate) for candidate in plan.front],
        "picks": {str(which): plan.front.index(c) for which, c in plan.picks.items()},
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
        f"{_fitting_words(plan)}",
    )
    for sentence in plan_assumptions(plan):
        yield Text(f"- {sentence}")


def _fitting_words(plan: Plan) -> str:
    """How many fit: where nothing is simulated, surely, and how many may."""
    if not plan.is_quick:
        return f"{plan.num_fitting:,} of them are expected to fit."
    words = f"{plan.num_surely_fitting:,} of them fit by a formula and its upper bound"
    if not plan.num_in_doubt:
        return words + "."
    return (
        f"{words}; {plan.num_in_doubt:,} more may, whose upper bound does not: a plan without "
        "--quick simulates what it shows."
    )


def plan_assumptions(plan: Plan) -> Iterator[str]:
    """What the figures rest on, a sentence each."""
    spec, host = plan.spec, plan.spec.host
    if plan.workload.adapters_in_words:
        yield plan.workload.adapters_in_words
    yield (
        f"A strategy may use {format_gib(plan.question.memory_limit_bytes)} GiB of each device "
        f"(--headroom {plan.question.headroom:g})."
    )
    gib, usable = format_gib(host.host_memory_bytes), format_gib(plan.question.host_limit_bytes)
    use = f"a strategy may use {usable} of them (--host-headroom {plan.question.host_headroom:g})"
    if spec.has_assumed_host:
        yield (
            f"Host memory is assumed: {gib} GiB a host, three times that of its GPUs, 256 GiB a "
            f"GPU at most; --host-memory says otherwise; {use}."
        )
    else:
        yield f"A host has {gib} GiB of memory; {use}."
    yield "Everything is assumed to be installed there: Liger, FlashAttention 2, a compiler, CUDA."
    source = "data sheet" if host.device_kind in DEVICE_KINDS else "given peak"
    measured = "; those given as measured go before it" if host.rates is not None else ""
    yield f"Rates come from the {source}, times the shares of it that one H100 attained{measured}."
    if host.nvme_path is not None:
        yield (
            f"A host has {format_gib(host.nvme_free_bytes)} GiB of NVMe disk, at {host.nvme_path}."
        )
    if plan.calibration is not None:
        yield from plan.calibration.sentences(plan.candidates.table)
    if plan.doubt is not None:
        yield (
            f"Activations of {plan.workload.model.name} are a guess, with wider bounds: its code "
            f"could not be followed ({plan.doubt})."
        )
    if spec.num_nodes > 1:
        yield (
            "Links between hosts are assumed, not measured: a port of 200 Gb/s for each GPU with "
            "HBM, 12 Gb/s for each other."
        )


def _front_table(plan: Plan) -> Table:
    table = plain_table("Predicted Pareto front")
    table.add_column("strategy", overflow="fold", min_width=16)
    table.add_column("tokens/s", justify="right", min_width=8)
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
        in_doubt = "" if plan.surely_fits(candidate) else "?"
        table.add_row(
            strategy,
            format_speed(prediction),
            f"{plan.mfu(candidate):.0%}",
            ("" if prediction.is_simulated else "~") + format_gib(prediction.peak_memory_bytes),
            format_gib_range(*bounds) + in_doubt,
            f"{plan.headroom(candidate):.0%}",
            *([_host_words(candidate.prediction)] if has_host else []),
            str(plan.loss_class(candidate)),
        )
    table.caption = _LEGEND
    return table


def _host_words(prediction: Prediction) -> str:
    """What is expected of the host, and below it the most; a dash where nothing is offloaded."""
    if not prediction.host_memory_bytes:
        return "-"
    most = format_gib(prediction.peak_host_upper_bytes)
    return f"{format_gib(prediction.peak_host_bytes)}\nto {most}"
