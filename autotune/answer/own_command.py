"""What trials of the user's own command show beside their figures: their start, and their losses.

Does not know the baseline, nor how trials were run.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from autotune.answer.figures import format_duration, joined
from autotune.knob_values import LossClass
from autotune.study.summary import StudySummary
from autotune.trials.trial import Trial

__all__ = ["own_command_words"]

_SAME_LOSS = 0.01
"""Losses of a first step that differ by a smaller share are the same: in bf16 sums of another
order differ so far."""


def own_command_words(summary: StudySummary) -> Iterator[str]:
    """A sentence on the time that trials took to start, and one on losses that differ."""
    if summary.own_training is None:
        return
    measured = [trial for trial in summary.trials if trial.measurement is not None]
    if measured:
        yield _start_words(measured)
    words = _loss_words(summary, measured)
    if words:
        yield words


def _start_words(measured: list[Trial]) -> str:
    starts = [trial.measurement.setup_time_s for trial in measured if trial.measurement]
    wholes = [trial.duration_s for trial in measured]
    return (
        f"Of each trial (median {format_duration(median(wholes))}) the command took "
        f"{format_duration(median(starts))} to its first step: imports, weights, data, engine."
    )


def _loss_words(summary: StudySummary, measured: list[Trial]) -> str | None:
    """Which neutral trials begin with another loss than the user's own run."""
    baseline = summary.baseline_trial
    own = None if baseline is None else _first_loss(baseline)
    if own is None or baseline is None:
        return None
    whole = [trial for trial in measured if trial.measurement and trial.measurement.share_run == 1]
    others = [
        trial.number
        for trial in whole
        if summary.loss_class(trial) is LossClass.NEUTRAL
        and (loss := _first_loss(trial)) is not None
        and abs(loss - own) > _SAME_LOSS * abs(own)
    ]
    if not others:
        num = len(whole) - 1
        trials = "the other trial" if num == 1 else f"{num} other trials"
        same = f", and the same in {trials} with whole steps" if num > 0 else ""
        return f"Loss of the first step: {own:.4f} in your own run{same}."
    return (
        f"Loss of the first step: {own:.4f} in your own run; {joined(others)} differ by over "
        f"{_SAME_LOSS:.0%}, though their strategies are neutral. The command draws other samples "
        "or weights there, or divides its loss by the number of micro-batches."
    )


def _first_loss(trial: Trial) -> float | None:
    losses = trial.measurement.losses if trial.measurement is not None else ()
    # A loss that DeepSpeed was not handed is written down as 0.
    return losses[0] or None if losses else None
