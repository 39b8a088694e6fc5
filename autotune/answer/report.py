"""A study for people, as renderables of rich.

Does not know where trials are stored, nor how wide the terminal is.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autotune.answer.baseline import baseline_words
from autotune.answer.best import best_words, tie_words
from autotune.answer.figures import (
    format_duration,
    format_gib,
    format_percent,
    joined,
    plain_table,
)
from autotune.answer.front_table import pareto_table
from autotune.answer.own_command import own_command_words
from autotune.machine.hardware import DeviceType, Hardware
from autotune.question.goal import Goal
from autotune.question.workload import Workload
from autotune.study.confirmation import Comparison, Verdict
from autotune.study.summary import StudySummary
from autotune.trials.trial import Failure, Trial, TrialState

__all__ = ["format_duration", "headline", "render_report", "training_words"]

_NUM_REASONS = 5
"""Reasons for pruning that a report names."""


def render_report(
    summary: StudySummary, exported: Path | None = None, *, all_rows: bool = False
) -> RenderableType:
    """The whole report of a study. Contains no markup, so any text in it is shown as it is.

    Args:
        summary: the study.
        exported: the folder with the export of the best trial, if there is one.
        all_rows: show every row of the front.
    """
    parts: list[RenderableType] = [*_header(summary), "", *_counts(summary), ""]
    if summary.front:
        parts += [
            pareto_table(summary, all_rows=all_rows),
            *_ties(summary),
            *_confirmation(summary),
        ]
        parts += _exports(summary, exported)
    else:
        parts.append(Text("No trial fits yet. There is nothing to export.", style="bold"))
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


def headline(workload: Workload, hardware: Hardware) -> Text:
    """The question in one line: model, method, lengths, and the hardware."""
    where = str(hardware).replace(" x ", " × ")
    if hardware.device_type is DeviceType.CPU:
        where = where.replace("× cpu", "CPU ranks")
    return Text.assemble(
        "Fastest way to train ",
        (workload.model.name, "bold"),
        f" · {training_words(workload)} · {where}",
    )


def _header(summary: StudySummary) -> Iterator[RenderableType]:
    workload, hardware = summary.workload, summary.hardware
    yield headline(workload, hardware)
    yield Text(
        f"Study: {summary.name}. Each device has {format_gib(hardware.device_memory_bytes)} GiB."
    )
    yield from map(Text, workload.remarks)
    asked = ", ".join(f"{flag} {value}" for flag, value in summary.question.items())
    if asked:
        yield Text(f"Options: {asked}")
    if words := baseline_words(summary):
        yield Text(words)
    yield from map(Text, own_command_words(summary))
    versions = ", ".join(f"{name} {version}" for name, version in summary.versions.items())
    if versions:
        yield Text(f"Versions: {versions}", style="dim")


def _counts(summary: StudySummary) -> Iterator[RenderableType]:
    yield Text(_count_words(summary))
    if summary.interrupted:
        yield Text(
            f"Interrupted from outside: {_trials(summary.interrupted)}. This says nothing about "
            "their strategies. The same command runs them again."
        )
    if summary.disturbed:
        yield Text(_disturbance_words(summary.disturbed))
    if held := [n for t in summary.trials if (n := _others_device_bytes(t))]:
        yield Text(
            f"Other processes held up to {format_gib(max(held))} GiB of a GPU during "
            f"{_num_trials(len(held))}. It counts as used there."
        )
    if summary.end_reason:
        yield Text(f"The search ended: {summary.end_reason}.")
    errors = summary.prediction_errors
    if errors:
        num = max(error.num_trials for error in errors.values())
        words = "; ".join(
            f"{name} {format_percent(error.median)} / {format_percent(error.p95)}"
            for name, error in errors.items()
        )
        yield Text(f"Prediction error, median / 95th percentile ({_num_trials(num)}): {words}.")
    if summary.reused:
        yield Text(
            f"Reused from earlier studies, not launched: {_num_trials(len(summary.reused))}. The "
            'table marks them with "reused".'
        )
    if summary.forced:
        fitting = sum(trial.fits for trial in summary.forced)
        yield Text(
            f"Launched although they were pruned (--force-pruned): {_trials(summary.forced)}. "
            f"{fitting} of {len(summary.forced)} fit."
        )
    if summary.num_unfit:
        yield Text(
            f"Complete, but does not count as fitting: {_num_trials(summary.num_unfit)}. Memory "
            "was over the limit, or the allocator flushed its cache in timed steps."
        )


def _count_words(summary: StudySummary) -> str:
    states = ", ".join(f"{n} {state}" for state, n in summary.counts.items() if n)
    line = f"{_num_trials(len(summary.trials))} in {format_duration(summary.elapsed_s)}"
    line += f": {states}." if states else "."
    if summary.num_launched:
        line += f" Launched: {summary.num_launched}"
        if summary.trials_per_minute is not None:
            line += f" ({summary.trials_per_minute:.1f} per minute)"
        fraction = format_percent(summary.out_of_memory_fraction)
        line += f". Out of memory: {summary.num_out_of_memory} ({fraction} of those launched)."
    return line


def _num_trials(num: int) -> str:
    return "1 trial" if num == 1 else f"{num:,} trials"


def _trials(trials: Sequence[Trial]) -> str:
    return joined([trial.number for trial in trials])


def _disturbance_words(disturbed: Sequence[Trial]) -> str:
    fractions = [trial.measurement.disturbance for trial in disturbed if trial.measurement]
    return (
        f"The machine was busy during {_num_trials(len(disturbed))}: other processes took "
        f"{min(fractions):.0%} to {max(fractions):.0%} of the cores or GPUs that a trial needs. "
        "Throughput is lower than on an idle machine. The intervals are wider to allow for it."
    )


def _others_device_bytes(trial: Trial) -> int:
    return trial.measurement.others_device_bytes if trial.measurement else 0


def _ties(summary: StudySummary) -> Iterator[RenderableType]:
    """Which trials of the front are no slower than others, as far as was measured."""
    found = summary.ties
    if found:
        yield ""
    for tie in found:
        yield Text(
            f"Tie: {_trials(tie.others)} may be as fast as trial {tie.fastest.number}. The "
            "difference is within the noise."
        )


def _confirmation(summary: StudySummary) -> Iterator[RenderableType]:
    """What the confirming runs of the best trials showed."""
    again = [trial for trial in summary.trials if trial.is_confirmed]
    if not again:
        return
    runs = ", ".join(f"trial {trial.number} ({len(trial.confirmations)}×)" for trial in again)
    yield ""
    yield Text(
        f"Confirmed with longer, interleaved runs: {runs}. The table shows the figures of these "
        "runs."
    )
    for found in summary.comparisons:
        yield Text(_in_words(found))
    yield from map(Text, tie_words(summary))


def _in_words(found: Comparison) -> str:
    first, second = found.first.number, found.second.number
    difference = f"{found.difference.mean:.1%} ± {found.difference.half_width:.1%}"
    match found.verdict:
        case Verdict.FASTER:
            return f"Trial {first} is faster than trial {second} by {difference}."
        case Verdict.TIE:
            return f"Trials {first} and {second} are tied: the difference is {difference}."
        case Verdict.OPEN:
            return (
                f"Trials {first} and {second} are tied so far: the difference is {difference}. "
                "The budget had no room for more runs."
            )


def _exports(summary: StudySummary, exported: Path | None) -> Iterator[RenderableType]:
    folder = shlex.quote(str(summary.folder or f"results/{summary.name}"))
    storage = f" --storage {shlex.quote(summary.storage_url)}" if summary.storage_url else ""
    by_trial: dict[int, Goal] = {}
    for which, trial in summary.picks.items():
        by_trial.setdefault(trial.number, which)
    yield ""
    yield Text(f"{best_words(summary, exported)}.")
    yield Text("To export one of them:")
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
    table.add_column("count", justify="right", no_wrap=True)
    table.add_column("kind", overflow="fold")
    table.add_column("phase", overflow="fold")
    table.add_column("first message", overflow="fold", min_width=20)
    for kind, alike in sorted(by_kind.items(), key=lambda item: -len(item[1])):
        phases = dict.fromkeys(str(failure.phase) for failure in alike if failure.phase)
        message = Text(alike[0].message)
        table.add_row(str(len(alike)), kind, ", ".join(phases) or "-", message)
    return table


def _reason_table(reasons: Iterable[str]) -> Table:
    """The most frequent reasons. Reasons that differ only in their figures count as one."""
    examples: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for reason in reasons:
        kind = re.sub(r"\d[\d.,]*", "N", reason)
        examples.setdefault(kind, reason)
        counts[kind] += 1
    table = plain_table("Pruned trials")
    table.add_column("count", justify="right", no_wrap=True)
    table.add_column("reason (figures of the first)", overflow="fold", min_width=20)
    for kind, count in counts.most_common(_NUM_REASONS):
        table.add_row(str(count), Text(examples[kind]))
    others = counts.total() - sum(count for _, count in counts.most_common(_NUM_REASONS))
    if others:
        table.add_row(str(others), "other reasons")
    return table


def training_words(workload: Workload) -> str:
    """Method, sequence length and global batch, for a headline."""
    method = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}[workload.method]
    return f"{method} · seq {workload.seq_len:,} · global batch {workload.global_batch_size:,}"
