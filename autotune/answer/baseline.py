"""The best of an answer compared with what its user has: one line for people, and JSON values.

Does not know where the baseline was told, nor how it was measured or predicted.
"""

from __future__ import annotations

from typing import Any

from autotune.answer.figures import format_gib
from autotune.study.summary import StudySummary
from autotune.trials.trial import Trial

__all__ = ["baseline_json", "baseline_words", "compared_words"]


def compared_words(speed: float, bytes_saved: float) -> str:
    """Such as "1.90 × yours, 12.0 GiB less".

    Args:
        speed: throughput over that of the baseline.
        bytes_saved: of device memory.
    """
    gib = format_gib(abs(bytes_saved))
    if not float(gib):
        return f"{speed:.2f} × yours, in the same memory"
    return f"{speed:.2f} × yours, {gib} GiB {'less' if bytes_saved > 0 else 'more'}"


def baseline_words(summary: StudySummary) -> str | None:
    """The baseline and how the best compares with it, in a line; None where there is none."""
    baseline = summary.baseline
    if baseline is None:
        return None
    name = f"Baseline ({baseline.source})"
    if baseline.strategy is None:
        return f"{name}: cannot run here: {baseline.problem}."
    trial = summary.baseline_trial
    if trial is None:
        return f"{name}: {baseline.strategy} was not run yet."
    words = f"{name}: trial {trial.number}, {baseline.strategy}"
    best = summary.best
    if trial.measurement is None:
        return f"{words}: not measured: {_why_not(trial)}."
    words += (
        f": {trial.tokens_per_second:,.0f} {trial.unit}/s in {format_gib(trial.peak_memory_bytes)}"
    )
    words += " GiB." if trial.fits else " GiB, which is over the limit."
    if best is None:
        return words
    if best.number == trial.number:
        return f"{words} No trial is better for --objective {summary.goal}."
    return f"{words} Trial {best.number} is {compared_words(*_compared(trial, best))}."


def _why_not(trial: Trial) -> str:
    if trial.failure is not None:
        return str(trial.failure.kind).replace("_", " ")
    return trial.reason or str(trial.state)


def _compared(trial: Trial, best: Trial) -> tuple[float, float]:
    """Speed of the best over the baseline's, and the bytes that it saves."""
    saved = trial.peak_memory_bytes - best.peak_memory_bytes
    return best.tokens_per_second / trial.tokens_per_second, saved


def baseline_json(summary: StudySummary) -> dict[str, Any] | None:
    """The baseline as JSON values; None where there is none."""
    baseline, trial, best = summary.baseline, summary.baseline_trial, summary.best
    if baseline is None:
        return None
    is_compared = trial is not None and trial.measurement is not None and best is not None
    speed, saved = _compared(trial, best) if is_compared else (None, None)  # type: ignore[arg-type]
    return {
        **baseline.to_dict(),
        "strategy_in_words": str(baseline.strategy) if baseline.strategy else None,
        "trial": None if trial is None else trial.number,
        "speedup": speed,
        "bytes_saved": saved,
    }
