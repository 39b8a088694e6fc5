"""The table of the measured Pareto front.

Does not know the rest of a report, nor how wide the terminal is.
"""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from autotune.answer.figures import (
    format_gib,
    format_interval,
    format_millijoules,
    format_peak,
    format_percent,
    format_speed,
    joined,
    plain_table,
)
from autotune.answer.front_rows import front_title, shown_rows, strategy_column
from autotune.study.summary import StudySummary
from autotune.trials.measurement import TOKENS
from autotune.trials.trial import Trial

__all__ = ["pareto_table"]

_LEGEND = (
    "±: 95 % interval over steps, or over runs if the trial was confirmed. pred.: prediction "
    "before the launch, with its bounds. GiB: peak reserved memory of the worst rank. free: "
    "device memory left at that peak. neutral: same training result as the reference; changing: "
    "may alter it. tie: the difference in speed is within the noise. Words of a strategy: "
    "autotune report --help."
)


def pareto_table(summary: StudySummary, *, all_rows: bool = False) -> Table:
    """The front, fastest first. The names of picks are under their strategies."""
    front, picks = summary.front, summary.picks
    shown = shown_rows(front, picks.values(), all_rows=all_rows)
    strategies = strategy_column([trial.strategy for trial in shown])
    losses = {str(summary.loss_class(trial)) for trial in shown}
    has_one_loss = len(losses) == 1
    has_mfu = any(summary.mfu(trial) is not None for trial in shown)
    has_energy = any(trial.energy_j_per_token is not None for trial in shown)
    shared = (strategies.shared, *(losses if has_one_loss else ()))
    table = plain_table(
        front_title("Pareto front", num_shown=len(shown), num_rows=len(front), shared=shared)
    )
    table.padding = 0  # All columns fit into 80 characters.
    table.add_column("trial", justify="right", no_wrap=True)
    table.add_column("strategy", overflow="fold", min_width=14)
    table.add_column(f"{front[0].unit if front else TOKENS}/s", justify="right", no_wrap=True)
    table.add_column("pred.", justify="right", no_wrap=True)
    if has_mfu:
        table.add_column("MFU", justify="right", no_wrap=True)
    if has_energy:
        table.add_column("mJ/token", justify="right", no_wrap=True)
    table.add_column("GiB", justify="right", no_wrap=True)
    table.add_column("pred.", justify="right", no_wrap=True)
    table.add_column("free", justify="right", no_wrap=True)
    if not has_one_loss:
        table.add_column("loss", no_wrap=True)
    for trial, words in zip(shown, strategies.rows, strict=True):
        assert trial.throughput is not None
        prediction = trial.prediction
        table.add_row(
            str(trial.number),
            _strategy_cell(summary, trial, words),
            format_interval(trial.throughput),
            format_speed(prediction) if prediction else "-",
            *([format_percent(summary.mfu(trial))] if has_mfu else []),
            *([format_millijoules(trial.energy_j_per_token)] if has_energy else []),
            format_gib(trial.peak_memory_bytes),
            format_peak(prediction) if prediction else "-",
            format_percent(summary.headroom(trial)),
            *([] if has_one_loss else [str(summary.loss_class(trial))]),
        )
    table.caption = _LEGEND
    return table


def _strategy_cell(summary: StudySummary, trial: Trial, words: str) -> Text:
    """The words of a strategy, its picks, and the trials that a pick ties with."""
    cell = Text(words)
    names = [str(which) for which, picked in summary.picks.items() if picked is trial]
    if names:
        cell.append(f"\npick: {', '.join(names)}", style="bold green")
    alike = summary.as_fast_as(trial) if names else []
    if alike:
        cell.append(f"\ntie: {joined([one.number for one in alike])}", style="yellow")
    if trial is summary.baseline_trial:
        cell.append("\nbaseline: yours", style="bold yellow")
    if trial.reused_from is not None:
        cell.append(f"\nreused: {trial.reused_from}", style="dim")
    return cell
