"""Progress of a search on stderr: a live view in a terminal, plain lines in a pipe.

Decides nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from autotune.answer.figures import format_gib
from autotune.drivers.budget import Budget
from autotune.trials.trial import Measurement, Prediction, Trial, TrialState

__all__ = ["LiveProgress", "PlainProgress", "describe_end"]

_REFRESH_S = 0.25
_NUM_RECENT = 6
_NUM_RUNNING = 8
"""The most running trials that are shown; a cluster may run hundreds."""


def describe_end(trial: Trial) -> str:
    """How a trial ended, in one line."""
    return f"forced: {_end(trial)}" if trial.is_forced else _end(trial)


def _end(trial: Trial) -> str:
    if trial.measurement is not None and trial.state is not TrialState.PRUNED:
        measured = trial.measurement
        peak = format_gib(measured.peak_memory_bytes)
        words = f"{measured.tokens_per_second:,.0f} {measured.unit}/s{_padding(measured)}"
        words += f" in {peak} GiB"
        if trial.prediction is not None and trial.prediction.is_memory_known:
            words += f" (pred. {_expected(trial.prediction)})"
        if measured.num_alloc_retries:
            return words + "; does not count: the allocator flushed its cache"
        return words if trial.fits else words + "; does not fit: over the memory limit"
    if trial.failure is not None:
        phase = f" in {trial.failure.phase}" if trial.failure.phase else ""
        return f"{trial.failure.kind.replace('_', ' ')}{phase}: {trial.failure.message}"
    return f"stopped early: {trial.reason}" if trial.was_launched else f"pruned: {trial.reason}"


def _padding(measured: Measurement) -> str:
    """What throughput comes to with padding; empty where there is none."""
    padded = measured.padded_tokens_per_second
    if padded is None or padded < 1.005 * measured.tokens_per_second:
        return ""
    return f" ({padded:,.0f} with padding)"


def _busy_words(trial: Trial) -> str:
    """A warning that other processes slow trials; empty if none slowed this one."""
    fraction = trial.measurement.disturbance if trial.measurement else 0.0
    if not fraction:
        return ""
    return (
        f"This machine is busy: other processes took {fraction:.0%} of the cores or GPUs that "
        f"trial {trial.number} needs. Throughput is lower than on an idle machine. The intervals "
        "are wider to allow for it."
    )


def _expected(prediction: Prediction) -> str:
    if not prediction.is_memory_known:
        return "unknown"
    peak = format_gib(prediction.peak_memory_bytes)
    if not prediction.is_time_known:
        return f"{peak} GiB"
    return f"{prediction.tokens_per_second:,.0f} tokens/s in {peak} GiB"


def _clock(seconds: float) -> str:
    """Minutes and seconds, as 1:50; hours too if there are any, as 1:01:50."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class PlainProgress:
    """One line per trial, for logs and pipes.

    Args:
        console: where to write.
        budget: for the time stamps.
    """

    def __init__(self, console: Console, budget: Budget) -> None:
        self._console = console
        self._budget = budget
        self._num_pruned = 0
        self._has_said_busy = False

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def note(self, words: str) -> None:
        """A line of its own."""
        self._line(words)

    def trials_changed(self, trials: Sequence[Trial]) -> None:
        """Write how many strategies were pruned since the last line."""
        num_pruned = sum(
            trial.state is TrialState.PRUNED and not trial.was_launched for trial in trials
        )
        if num_pruned > self._num_pruned:
            self._line(f"pruned without a launch: {num_pruned - self._num_pruned} strategies")
        self._num_pruned = num_pruned

    def cluster_changed(self, words: str) -> None:
        """Does nothing: nodes that come and go have notes of their own."""

    def trial_started(self, trial: Trial) -> None:
        """Does nothing: the line at its end has all figures."""

    def trial_event(self, event: Mapping[str, Any]) -> None:
        """Does nothing."""

    def trial_ended(self, trial: Trial) -> None:
        """The trial's line."""
        name = trial.number if trial.confirms is None else f"{trial.confirms} (confirming run)"
        self._line(f"trial {name}: {trial.strategy}: {describe_end(trial)}")
        if not self._has_said_busy and (words := _busy_words(trial)):
            self._has_said_busy = True
            self._line(words)

    def refresh(self) -> None:
        """Does nothing: lines do not move."""

    def _line(self, words: str) -> None:
        stamp = f"[{self._budget.elapsed_s:6.1f} s] "
        self._console.print(Text(stamp + words), soft_wrap=True)


@dataclass(slots=True)
class _Running:
    """A trial while it runs."""

    trial: Trial
    started: float = field(default_factory=time.monotonic)
    step: str = "starting"
    node: str = ""

    def __str__(self) -> str:
        predicted = self.trial.prediction
        is_known = predicted is not None and predicted.is_memory_known
        memory = f" (pred. {_expected(predicted)})" if predicted and is_known else ""
        where = f" on {self.node}" if self.node else ""
        seconds = time.monotonic() - self.started
        return (
            f"running {self.trial.number}{where}: {self.trial.strategy}{memory}: "
            f"{self.step}, {seconds:.0f} s so far"
        )


class LiveProgress:
    """A view in a terminal that is redrawn in place.

    Args:
        console: a terminal.
        budget: the view shows the time that is left.
    """

    def __init__(self, console: Console, budget: Budget) -> None:
        self._budget = budget
        self._trials: Sequence[Trial] = ()
        self._running: dict[int, _Running] = {}
        self._cluster = ""
        self._notes: list[str] = []
        self._drawn = 0.0
        self._has_said_busy = False
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> LiveProgress:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def note(self, words: str) -> None:
        """A line above the view."""
        self._notes = [words]
        self._draw()

    def trials_changed(self, trials: Sequence[Trial]) -> None:
        """Show the new states of the trials."""
        self._trials = tuple(trials)
        self._draw()

    def cluster_changed(self, words: str) -> None:
        """Show the nodes of the cluster."""
        self._cluster = words

    def trial_started(self, trial: Trial) -> None:
        """Show the trial among the running ones."""
        self._running[trial.number] = _Running(trial)
        self._draw()

    def trial_event(self, event: Mapping[str, Any]) -> None:
        """Show the step of a running trial; the event names the trial if several run."""
        running = self._running.get(event.get("trial", next(reversed(self._running), -1)))
        if running is None:
            return
        running.node = event.get("node", "")
        if event["event"] == "ready":
            running.step = f"engine ready after {event['setup_time_s']:.1f} s"
        elif event["event"] == "step":
            kind = "timed" if event["is_timed"] else "warm-up"
            running.step = f"step {event['index'] + 1} ({kind}) {event['time_s']:.2f} s"

    def trial_ended(self, trial: Trial) -> None:
        """Remove the trial from the running ones."""
        self._running.pop(trial.number, None)
        if not self._has_said_busy and (words := _busy_words(trial)):
            self._has_said_busy = True
            self._notes = [words]
        self._draw()

    def refresh(self) -> None:
        """Redraw a few times a second."""
        if time.monotonic() - self._drawn >= _REFRESH_S:
            self._draw()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        self._live.update(Group(*self._lines()), refresh=True)

    def _lines(self) -> list[Text | Table]:
        counts = Counter(trial.state for trial in self._trials)
        states = "  ".join(f"{state} {counts[state]}" for state in TrialState if counts[state])
        left = max(0.0, self._budget.remaining_s)
        lines: list[Text | Table] = [
            Text(f"{_clock(left)} of {_clock(self._budget.seconds)} left   {states}"),
            *(Text(note, style="yellow") for note in self._notes),
        ]
        fitting = [trial for trial in self._trials if trial.fits]
        if fitting:
            best = max(fitting, key=lambda t: t.tokens_per_second)
            lines.append(
                Text(f"best so far: {best.strategy}: {describe_end(best)}", style="green")
            )
        lines.append(self._recent())
        if self._cluster:
            lines.append(Text(self._cluster, style="cyan"))
        running = list(self._running.values())
        lines += [Text(str(one), style="cyan") for one in running[:_NUM_RUNNING]]
        if len(running) > _NUM_RUNNING:
            lines.append(Text(f"… and {len(running) - _NUM_RUNNING} more", style="cyan"))
        lines.append(Text("Ctrl-C stops the search; the study is kept", style="dim"))
        return lines

    def _recent(self) -> Table:
        table = Table.grid(padding=(0, 2))
        launched = [
            t for t in self._trials if t.was_launched and t.state is not TrialState.RUNNING
        ]
        for trial in launched[-_NUM_RECENT:]:
            table.add_row(
                Text(str(trial.number)), Text(str(trial.strategy)), Text(describe_end(trial))
            )
        return table
