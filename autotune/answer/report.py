"""The report of a study for people, as renderables of rich.

Does not know where trials are stored, nor how wide the terminal is.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autotune.answer.best import best_words, tie_words
from autotune.question.goal import Goal
from autotune.question.workload import Workload
from autotune.study.confirmation import Comparison, Verdict
from autotune.study.summary import StudySummary
from autotune.trials.interval import Interval
from autotune.trials.trial import Failure, Prediction, Trial, TrialState

__all__ = [
    "format_duration",
    "format_gib",
    "format_gib_range",
    "format_interval",
    "format_speed",
    "pareto_table",
    "plain_table",
    "render_report",
    "training_words",
]

_NUM_REASONS = 5
"""Reasons for pruning that a report names."""

_LEGEND = (
    "±: the 95 % interval, over steps of one run, or over runs where a trial was run again. "
    "peak: what the allocator reserved on the worst rank. predicted: before the launch, with the "
    "bounds where they are known. free: device memory left at that time. "
    "loss: neutral trains as the reference does; changing can change what is learned. "
    "tie: what was measured does not tell the pick's speed from that of these trials."
)


def render_report(summary: StudySummary, exported: Path | None = None) -> RenderableType:
    """The whole report of a study. Contains no markup, so any text in it is shown as it is.

    Args:
        summary: of the study.
        exported: the folder that the best trial is exported to, if it is.
    """
    parts: list[RenderableType] = [*_header(summary), "", *_counts(summary), ""]
    if summary.front:
        parts += [pareto_table(summary), *_ties(summary), *_confirmation(summary)]
        parts += _exports(summary, exported)
    else:
        parts.append(Text("No trial fits yet: there is nothing to export.", style="bold"))
    failures = [
        trial.failure
        for trial in summary.trials
        if trial.failure is not None and trial.state is TrialState.FAILED
    ]
    if failures:
        parts += ["", _failure_table(failures)]
    reasons = [trial.reason for trial in summary.trials if trial.reason]
    if reasons:
        parts += ["", _reason_table(reasons)]
    return Group(*parts)


def pareto_table(summary: StudySummary) -> Table:
    """The front, fastest first; under a strategy stand its picks and whom each ties with."""
    front, picks = summary.front, summary.picks
    has_mfu = any(summary.mfu(trial) is not None for trial in front)
    has_energy = any(trial.energy_j_per_token is not None for trial in front)
    table = plain_table("Pareto front")
    table.padding = 0  # All columns fit into 80 characters.
    table.add_column("trial", justify="right", no_wrap=True)
    table.add_column("strategy", overflow="fold", min_width=14)
    table.add_column("tokens/s", justify="right", no_wrap=True)
    table.add_column("predic-\nted", justify="right", min_width=8)
    if has_mfu:
        table.add_column("MFU", justify="right", no_wrap=True)
    if has_energy:
        table.add_column("mJ per\ntoken", justify="right", no_wrap=True)
    table.add_column("peak\nGiB", justify="right", no_wrap=True)
    table.add_column("predic-\nted GiB", justify="right", min_width=7)
    table.add_column("free", justify="right", no_wrap=True)
    table.add_column("loss", no_wrap=True)
    for trial in front:
        assert trial.throughput is not None
        strategy = Text(str(trial.strategy))
        names = [str(which) for which, picked in picks.items() if picked is trial]
        if names:
            strategy.append(f"\npick: {', '.join(names)}", style="bold green")
        alike = summary.as_fast_as(trial)
        if names and alike:
            strategy.append(f"\ntie: {_joined([one.number for one in alike])}", style="yellow")
        if trial.reused_from is not None:
            strategy.append(f"\nreused: {trial.reused_from}", style="dim")
        prediction = trial.prediction
        table.add_row(
            str(trial.number),
            strategy,
            format_interval(trial.throughput),
            format_speed(prediction) if prediction else "-",
            *([_percent(summary.mfu(trial))] if has_mfu else []),
            *([_millijoules(trial.energy_j_per_token)] if has_energy else []),
            format_gib(trial.peak_memory_bytes),
            _format_peak(prediction) if prediction else "-",
            _percent(summary.headroom(trial)),
            str(summary.loss_class(trial)),
        )
    table.caption = _LEGEND
    return table


def _header(summary: StudySummary) -> Iterator[RenderableType]:
    workload, hardware = summary.workload, summary.hardware
    yield Text.assemble("Study ", (summary.name, "bold"))
    yield Text(
        f"What trains {workload.model.name} best ({training_words(workload)}) on {hardware} with "
        f"{format_gib(hardware.device_memory_bytes)} GiB each?"
    )
    if workload.adapters_in_words:
        yield Text(workload.adapters_in_words)
    asked = ", ".join(f"{flag} {value}" for flag, value in summary.question.items())
    if asked:
        yield Text(f"Asked: {asked}")
    versions = ", ".join(f"{name} {version}" for name, version in summary.versions.items())
    if versions:
        yield Text(f"Versions: {versions}", style="dim")


def _counts(summary: StudySummary) -> Iterator[RenderableType]:
    states = ", ".join(f"{n} {state}" for state, n in summary.counts.items() if n)
    line = f"{len(summary.trials)} trials in {format_duration(summary.elapsed_s)}"
    line += f": {states}." if states else "."
    if summary.num_launched:
        share = _percent(summary.out_of_memory_share)
        line += f" {summary.num_launched} launched"
        if summary.trials_per_minute is not None:
            line += f" ({summary.trials_per_minute:.1f} a minute)"
        line += f", {summary.num_out_of_memory} of them out of memory ({share})."
    yield Text(line)
    if summary.interrupted:
        numbers = ", ".join(str(trial.number) for trial in summary.interrupted)
        yield Text(
            f"Stopped from outside, which says nothing of their strategies: trials {numbers}; the "
            "same command runs them again."
        )
    if summary.disturbed:
        yield Text(_disturbance_words(summary.disturbed))
    if summary.end_reason:
        yield Text(f"The search ended: {summary.end_reason}.")
    errors = summary.prediction_errors
    if errors:
        num = max(error.num_trials for error in errors.values())
        words = "; ".join(
            f"{name} {_percent(error.median)}, {_percent(error.p95)}"
            for name, error in errors.items()
        )
        yield Text(
            f"Predictions were off by (median, 95th percentile of {num} measured trials): {words}."
        )
    if summary.reused:
        yield Text(
            f"Measured by earlier studies and reused, not launched: {len(summary.reused)} trials, "
            "of which those on the front are marked."
        )
    if summary.forced:
        numbers = ", ".join(str(trial.number) for trial in summary.forced)
        fitting = sum(trial.fits for trial in summary.forced)
        yield Text(
            f"Forced although their prediction had pruned them: trials {numbers}; "
            f"{fitting} of {len(summary.forced)} fit."
        )
    if summary.num_unfit:
        yield Text(
            f"Complete trials that do not count as fitting: {summary.num_unfit} (over the memory "
            "limit, or the allocator had to flush its cache in timed steps)."
        )


def _disturbance_words(disturbed: Sequence[Trial]) -> str:
    shares = [trial.measurement.disturbance for trial in disturbed if trial.measurement]
    return (
        f"The machine was busy: beside {len(disturbed)} measured trials other processes took "
        f"{min(shares):.0%} to {max(shares):.0%} of what they need of its cores or GPUs. Their "
        "throughputs are lower than on an idle machine, and their intervals are widened by it."
    )


def _ties(summary: StudySummary) -> Iterator[RenderableType]:
    """Which trials of the front are no slower than others, as far as was measured."""
    found = summary.ties
    if found:
        yield ""
    for tie in found:
        numbers = _joined([trial.number for trial in tie.others])
        yield Text(
            f"Tie: {numbers} may be as fast as trial {tie.fastest.number}: what was measured does "
            "not tell them apart."
        )


def _joined(numbers: Sequence[int]) -> str:
    *first, last = map(str, numbers)
    return f"trials {', '.join(first)} and {last}" if first else f"trial {last}"


def _confirmation(summary: StudySummary) -> Iterator[RenderableType]:
    """What running the best again has shown."""
    again = [trial for trial in summary.trials if trial.is_confirmed]
    if not again:
        return
    runs = ", ".join(f"{trial.number} ({len(trial.confirmations)} times)" for trial in again)
    yield ""
    yield Text(
        f"Run again, longer and in turns: trials {runs}; their figures are from these runs."
    )
    for found in summary.comparisons:
        yield Text(_in_words(found))
    yield from map(Text, tie_words(summary))


def _in_words(found: Comparison) -> str:
    first, second = found.first.number, found.second.number
    difference = f"{found.difference.mean:.1%} ± {found.difference.half_width:.1%}"
    match found.verdict:
        case Verdict.FASTER:
            return f"Trial {first} is faster than trial {second}, by {difference}."
        case Verdict.TIE:
            return f"Trials {first} and {second} are a tie: they differ by {difference}."
        case Verdict.OPEN:
            return (
                f"Trials {first} and {second} are a tie as far as the time allowed to tell: they "
                f"differ by {difference}."
            )


def _exports(summary: StudySummary, exported: Path | None) -> Iterator[RenderableType]:
    folder = shlex.quote(str(summary.folder or f"results/{summary.name}"))
    storage = f" --storage {shlex.quote(summary.storage_url)}" if summary.storage_url else ""
    by_trial: dict[int, Goal] = {}
    for which, trial in summary.picks.items():
        by_trial.setdefault(trial.number, which)
    yield ""
    yield Text(f"{best_words(summary, exported)}.")
    yield Text("To train with one of them:")
    for number, which in by_trial.items():
        # Never wrapped, so that it can be copied.
        yield Text(
            f"  autotune export {folder} --pick {which}{storage}  # trial {number}",
            no_wrap=True,
            overflow="ignore",
        )


def _failure_table(failures: Iterable[Failure]) -> Table:
    by_kind: dict[str, list[Failure]] = {}
    for failure in failures:
        by_kind.setdefault(str(failure.kind).replace("_", " "), []).append(failure)
    table = plain_table("Failed trials")
    table.add_column("trials", justify="right", no_wrap=True)
    table.add_column("kind", overflow="fold")
    table.add_column("phase", overflow="fold")
    table.add_column("the first of them", overflow="fold", min_width=20)
    for kind, alike in sorted(by_kind.items(), key=lambda item: -len(item[1])):
        phases = dict.fromkeys(str(failure.phase) for failure in alike if failure.phase)
        message = Text(alike[0].message)
        table.add_row(str(len(alike)), kind, ", ".join(phases) or "-", message)
    return table


def _reason_table(reasons: Iterable[str]) -> Table:
    """Reasons that differ only in their figures are counted as one."""
    examples: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for reason in reasons:
        kind = re.sub(r"\d[\d.,]*", "N", reason)
        examples.setdefault(kind, reason)
        counts[kind] += 1
    table = plain_table("Pruned trials")
    table.add_column("trials", justify="right", no_wrap=True)
    table.add_column("reason, with the figures of the first", overflow="fold", min_width=20)
    for kind, count in counts.most_common(_NUM_REASONS):
        table.add_row(str(count), Text(examples[kind]))
    others = counts.total() - sum(count for _, count in counts.most_common(_NUM_REASONS))
    if others:
        table.add_row(str(others), "other reasons")
    return table


def plain_table(title: str) -> Table:
    """A table as all answers have them; no title where it is empty."""
    return Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        caption_style="dim",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )


def training_words(workload: Workload) -> str:
    """What is trained of the model, and on how much, for a headline."""
    method = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}[workload.method]
    return (
        f"{method}, {workload.seq_len:,} tokens a sample, "
        f"{workload.global_batch_size:,} samples a step"
    )


def format_gib(num_bytes: float) -> str:
    """Bytes in GiB, three figures or more."""
    gib = num_bytes / 2**30
    return f"{gib:.1f}" if gib >= 10 else f"{gib:.2f}"


def _format_peak(prediction: Prediction) -> str:
    """Predicted GiB, and below it between what bounds."""
    bounds = (prediction.peak_memory_lower_bytes, prediction.peak_memory_upper_bytes)
    return f"{format_gib(prediction.peak_memory_bytes)}\n{' to '.join(map(format_gib, bounds))}"


def format_gib_range(lower_bytes: float, upper_bytes: float) -> str:
    """Between what sizes, in GiB."""
    return f"{format_gib(lower_bytes)}-{format_gib(upper_bytes)}"


def format_speed(prediction: Prediction) -> str:
    """Predicted tokens/s, and below it between what bounds, where they are known."""
    if not prediction.is_time_known:
        return "-"
    speed, bounds = f"{prediction.tokens_per_second:,.0f}", prediction.tokens_per_second_bounds
    return speed if bounds is None else f"{speed}\n{bounds[0]:,.0f} to {bounds[1]:,.0f}"


def format_interval(interval: Interval) -> str:
    """A mean, and below it how far off it may be, where that says anything."""
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


def _millijoules(joules: float | None) -> str:
    """Three figures or more."""
    if joules is None:
        return "-"
    millijoules = 1000 * joules
    decimals = 0 if millijoules >= 100 else 1 if millijoules >= 10 else 2
    return f"{millijoules:,.{decimals}f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
