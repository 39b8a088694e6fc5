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

from autotune.answer.baseline import compared_words
from autotune.answer.figures import format_gib, format_gib_range, format_speed, plain_table
from autotune.answer.front_rows import front_title, shown_rows, strategy_column
from autotune.answer.report import headline
from autotune.machine.hardware import DEVICE_KINDS
from autotune.plan.plan import Candidate, Plan
from autotune.question.goal import Goal
from autotune.trials.trial import Prediction

__all__ = ["plan_assumptions", "plan_json", "planned_baseline_words", "render_plan"]

_LEGEND = (
    "GiB: reserved memory predicted for the worst rank, with its bounds. ~: estimated by a "
    "formula, not simulated. ?: the upper bound exceeds the memory of device or host. "
    "free: device memory left at the peak. host: GiB of one host with the save of a checkpoint, "
    "and the upper bound. neutral: same training result as the reference; changing: may alter it. "
    "Words of a strategy: autotune report --help."
)


def render_plan(plan: Plan, *, all_rows: bool = False) -> RenderableType:
    """The predicted front, and what it rests on.

    Args:
        plan: the plan.
        all_rows: show every row of the front.
    """
    return Group(*_header(plan), "", _front_table(plan, all_rows=all_rows))


def plan_json(plan: Plan) -> dict[str, Any]:
    """A plan as one JSON document.

    Returns:
        - `measured`: false, always.
        - `workload`, `hardware` (of one host), `num_nodes`, `space`, `headroom`,
          `host_headroom`: what was asked.
        - `assumptions`: sentences.
        - `calibrated_from`: null, or the `study`, its `hardware`, `num_trials`, and whether
          `step_time` was learned from it besides memory.
        - `num_strategies`: how many were predicted. `num_surely_fitting`: how many fit even by
          the upper bound of a formula. `num_in_doubt`: how many are expected to fit while their
          upper bound does not.
        - `quick`: whether nothing was simulated. Then only strategies that surely fit are on the
          front, unless there are none. `is_simulated` of a `prediction` says which ones were.
        - `limit_bytes` of each device, `host_memory_bytes` of each host, and of these
          `host_limit_bytes`, which a strategy may use.
        - `reference`: the strategy that loss classes refer to.
        - `baseline`: null, or what the user has: its `source`, a `problem` where it cannot run,
          else what the front says of a strategy, whether it `fits`, and of the fastest of the
          front the `speedup` over it and the `bytes_saved` of a device.
        - `front`: fastest first, each with `strategy`, `strategy_in_words`, `loss_class`,
          `prediction` (its fields are those of `Prediction`), `surely_fits` (whether its upper
          bounds fit too) and the fractions `mfu` and `headroom`.
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
        "num_in_doubt": plan.num_uncertain,
        "quick": plan.is_quick,
        "reference": plan.reference.to_dict(),
        "baseline": _baseline_json(plan),
        "front": [plan.record(candidate) for candidate in plan.front],
        "picks": {str(which): plan.front.index(c) for which, c in plan.picks.items()},
    }


def _header(plan: Plan) -> Iterator[Text]:
    yield headline(plan.workload, plan.hardware)
    yield Text.assemble(
        ("Predicted. Nothing was measured. ", "bold yellow"),
        f"{len(plan.candidates):,} strategies of the space {plan.question.space_name}: "
        f"{_fitting_words(plan)}",
    )
    for sentence in plan_assumptions(plan):
        yield Text(f"- {sentence}")
    if words := planned_baseline_words(plan):
        yield Text(words)


def planned_baseline_words(plan: Plan) -> str | None:
    """What the user has beside the fastest of the front, in a line; None where none is told."""
    baseline, own = plan.baseline, plan.own
    if baseline is None:
        return None
    name = f"Baseline ({baseline.source})"
    if own is None:
        return f"{name}: cannot run there: {baseline.problem}."
    prediction = own.prediction
    fits = "" if plan.fits(own) else ", which does not fit"
    words = (
        f"{name}: {own.strategy}: {prediction.tokens_per_second:,.0f} tokens/s in "
        f"{format_gib(prediction.peak_memory_bytes)} GiB predicted{fits}."
    )
    best = plan.picks.get(Goal.THROUGHPUT)
    if best is None:
        return words
    if best.strategy == own.strategy:
        return f"{words} Nothing of the space is predicted to be faster."
    return f"{words} {best.strategy} is {compared_words(*_compared(own, best))}."


def _compared(own: Candidate, best: Candidate) -> tuple[float, float]:
    """Speed of the best over that of the user's own, and the bytes of a device that it saves."""
    speed = best.prediction.tokens_per_second / own.prediction.tokens_per_second
    saved = own.prediction.peak_memory_bytes - best.prediction.peak_memory_bytes
    return speed, saved


def _baseline_json(plan: Plan) -> dict[str, Any] | None:
    if plan.baseline is None:
        return None
    record: dict[str, Any] = plan.baseline.to_dict()
    own, best = plan.own, plan.picks.get(Goal.THROUGHPUT)
    if own is not None:
        record |= plan.record(own) | {"fits": plan.fits(own)}
        if best is not None:
            speed, saved = _compared(own, best)
            record |= {"speedup": speed, "bytes_saved": saved}
    return record


def _fitting_words(plan: Plan) -> str:
    """How many strategies fit; in a quick plan, how many surely and how many perhaps."""
    if not plan.is_quick:
        return f"{plan.num_fitting:,} are expected to fit."
    words = f"{plan.num_surely_fitting:,} fit by the upper bound of a formula"
    if not plan.num_uncertain:
        return words + "."
    return (
        f"{words}; {plan.num_uncertain:,} more may fit. Without --quick, the memory of the shown "
        "strategies is simulated."
    )


def plan_assumptions(plan: Plan) -> Iterator[str]:
    """What the figures rest on, a sentence each."""
    spec, host = plan.spec, plan.spec.host
    yield from plan.workload.remarks
    yield (
        f"A strategy may use {format_gib(plan.question.memory_limit_bytes)} of "
        f"{format_gib(host.device_memory_bytes)} GiB per device "
        f"(--headroom {plan.question.headroom:g})."
    )
    yield _host_memory_words(plan)
    yield "All optional packages are assumed to be installed: Liger, FlashAttention 2, CUDA."
    source = "data sheet" if host.device_kind in DEVICE_KINDS else "given peak rates"
    measured = " The given measured rates replace them." if host.rates is not None else ""
    yield f"Rates are those of the {source}, scaled by the efficiency of one H100.{measured}"
    if host.nvme_path is not None:
        yield (
            f"A host has {format_gib(host.nvme_free_bytes)} GiB of NVMe disk, at {host.nvme_path}."
        )
    if plan.calibration is not None:
        yield from plan.calibration.sentences(plan.candidates.table)
    if plan.uncertainty is not None:
        yield (
            f"The activations of {plan.workload.model.name} are a guess with wider bounds, "
            f"because its code could not be traced: {plan.uncertainty}."
        )
    if spec.num_nodes > 1:
        yield (
            "Links between hosts use assumed rates: one port of 200 Gb/s per GPU with HBM, of "
            "12 Gb/s per other GPU."
        )


def _host_memory_words(plan: Plan) -> str:
    gib = format_gib(plan.spec.host.host_memory_bytes)
    limit = format_gib(plan.question.host_limit_bytes)
    use = f"A strategy may use {limit} GiB of it (--host-headroom {plan.question.host_headroom:g})"
    if plan.spec.has_assumed_host:
        return (
            f"Assuming {gib} GiB host RAM (3× GPU memory, at most 256 GiB per GPU); override with "
            f"--host-memory. {use}."
        )
    return f"A host has {gib} GiB of memory. {use}."


def _front_table(plan: Plan, *, all_rows: bool) -> Table:
    front, picks = plan.front, plan.picks
    shown = list(shown_rows(front, picks.values(), all_rows=all_rows))
    num_shown = len(shown)
    own = plan.own
    if own is not None and own.strategy not in [candidate.strategy for candidate in front]:
        shown.append(own)
    strategies = strategy_column([candidate.strategy for candidate in shown])
    losses = {str(plan.loss_class(candidate)) for candidate in shown}
    has_one_loss = len(losses) == 1
    has_host = any(candidate.prediction.host_memory_bytes for candidate in shown)
    shared = (strategies.shared, *(losses if has_one_loss else ()))
    name = "Predicted Pareto front"
    table = plain_table(front_title(name, num_shown=num_shown, num_rows=len(front), shared=shared))
    table.add_column("strategy", overflow="fold", min_width=16)
    table.add_column("tokens/s", justify="right", no_wrap=True)
    table.add_column("MFU", justify="right", no_wrap=True)
    table.add_column("GiB", justify="right", no_wrap=True)
    table.add_column("free", justify="right", no_wrap=True)
    if has_host:
        table.add_column("host", justify="right", no_wrap=True)
    if not has_one_loss:
        table.add_column("loss", no_wrap=True)
    for candidate, words in zip(shown, strategies.rows, strict=True):
        strategy = Text(words)
        names = [str(which) for which, picked in picks.items() if picked is candidate]
        if names:
            strategy.append(f"\npick: {', '.join(names)}", style="bold green")
        if own is not None and candidate.strategy == own.strategy:
            strategy.append("\nbaseline: yours", style="bold yellow")
        table.add_row(
            strategy,
            format_speed(candidate.prediction),
            f"{plan.mfu(candidate):.0%}",
            _memory_words(plan, candidate),
            f"{plan.headroom(candidate):.0%}",
            *([_host_words(candidate.prediction)] if has_host else []),
            *([] if has_one_loss else [str(plan.loss_class(candidate))]),
        )
    table.caption = _LEGEND
    return table


def _memory_words(plan: Plan, candidate: Candidate) -> str:
    """Reserved GiB, and its bounds in a second line, marked if they are a guess or too large."""
    prediction = candidate.prediction
    bounds = (prediction.peak_memory_lower_bytes, prediction.peak_memory_upper_bytes)
    by_formula = "" if prediction.is_simulated else "~"
    may_not_fit = "" if plan.surely_fits(candidate) else "?"
    expected = format_gib(prediction.peak_memory_bytes)
    return f"{by_formula}{expected}\n{format_gib_range(*bounds)}{may_not_fit}"


def _host_words(prediction: Prediction) -> str:
    """GiB of host memory, and the upper bound in a second line; a dash if nothing is offloaded."""
    if not prediction.host_memory_bytes:
        return "-"
    most = format_gib(prediction.peak_host_upper_bytes)
    return f"{format_gib(prediction.peak_host_bytes)}\n≤ {most}"
