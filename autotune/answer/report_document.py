"""The report of a study for programs, as one JSON document.

Does not know where trials are stored.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from autotune.answer.baseline import baseline_json
from autotune.answer.best import best_json
from autotune.study.summary import StudySummary

__all__ = ["report_json"]


def report_json(summary: StudySummary, exported: Path | None = None) -> dict[str, Any]:
    """A study as one JSON document.

    Args:
        summary: of the study.
        exported: the folder that the best trial is exported to, if it is.

    Returns:
        - `study`, `question`, `workload`, `hardware`, `versions`: what was asked, of what.
        - `reference`: the strategy that loss classes refer to.
        - `baseline`: null, or what the user has: its `source`, its `strategy` (also in words; null
          with a `problem` where it cannot run), its `trial` or null, and of the best trial the
          `speedup` over it and the `bytes_saved` of a device; both null where not measured.
        - `end_reason`: why the last search ended, in words; null where it was cut off.
        - `elapsed_s`, `counts` (trials by state), `num_launched`, `num_out_of_memory`,
          `out_of_memory_share`, `trials_per_minute`: figures of the whole study, null where
          nothing was launched.
        - `prediction_errors`: of `allocated` and `reserved` memory and of `step time`: `median`
          and `p95` of |predicted / measured - 1|, and `num_trials`; empty where nothing was
          measured.
        - `front`: numbers of the trials on the Pareto front, fastest first.
        - `comparisons`: of the trials that were run again, the faster `first` and the next one,
          `second`: the `difference` as a fraction with its 95 % `half_width`, and the `verdict`.
        - `ties`: of the front, a `trial` and those `with` it that may be as fast.
        - `picks`: trial number by `throughput`, `memory`, `balanced` and, where devices count
          energy, `energy`; empty where nothing fits.
        - `pick_ties`: by pick, the trials of the front that its throughput is a tie with.
        - `objective`: what the last search was after.
        - `best`: null where nothing fits, else the `trial` that is best for it, by which `pick`,
          and the `folder` that it is exported to, or null.
        - `trials`: each with `number`, `state`, `strategy`, `strategy_in_words`, `loss_class`,
          `prediction`, `measurement`, `failure`, `reason`, `duration_s`, `fits`, `is_forced`,
          `reused_from` (the trial of an earlier study that measured it), the fractions `mfu` and
          `headroom`, `throughput` with its 95 % `half_width`, `confirmations` (a measurement of
          each later run) and `has_failed_again` (whether one failed), and where it is measured
          `prediction_errors`, predicted over measured less 1. Their fields are those of the
          classes in `trial.py`.
    """
    return {
        "study": summary.name,
        "question": dict(summary.question),
        "workload": summary.workload.to_dict(),
        "hardware": asdict(summary.hardware),
        "versions": dict(summary.versions),
        "reference": summary.reference.to_dict(),
        "baseline": baseline_json(summary),
        "end_reason": summary.end_reason,
        "elapsed_s": summary.elapsed_s,
        "counts": {str(state): count for state, count in summary.counts.items()},
        "num_launched": summary.num_launched,
        "num_out_of_memory": summary.num_out_of_memory,
        "out_of_memory_share": summary.out_of_memory_fraction,
        "trials_per_minute": summary.trials_per_minute,
        "prediction_errors": {k: asdict(e) for k, e in summary.prediction_errors.items()},
        "front": [trial.number for trial in summary.front],
        "comparisons": [
            {
                "first": found.first.number,
                "second": found.second.number,
                "difference": found.difference.mean,
                "half_width": found.difference.half_width,
                "verdict": str(found.verdict),
            }
            for found in summary.comparisons
        ],
        "ties": [
            {"trial": tie.fastest.number, "with": [trial.number for trial in tie.others]}
            for tie in summary.ties
        ],
        "picks": {str(which): trial.number for which, trial in summary.picks.items()},
        "pick_ties": {
            str(which): [one.number for one in summary.as_fast_as(trial)]
            for which, trial in summary.picks.items()
        },
        "objective": str(summary.goal),
        "best": best_json(summary, exported),
        "trials": [summary.record(trial) for trial in summary.trials],
    }
