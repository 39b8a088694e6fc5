"""A planned strategy as a folder to train with, marked in every text as not measured.

Does not know how the folder is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autotune.answer.export import export_files, write_export
from autotune.answer.export_guide import guide_text, launch_script, loss_words
from autotune.answer.export_settings import planned_settings
from autotune.answer.figures import format_gib, format_gib_range
from autotune.plan.plan import Candidate, Plan
from autotune.plan.report import plan_assumptions
from autotune.question.goal import Goal

__all__ = ["export_plan"]

_MARK = "NOT MEASURED"


def export_plan(plan: Plan, which: Goal, folder: Path) -> Path:
    """Write the folder: ds_config.json, strategy.yaml, launch.sh, README.md, provenance.json.

    A folder that already holds this very export is left as it is.

    Returns:
        The folder.

    Raises:
        ConfigError: the folder holds something else.
        StorageError: the folder cannot be written.
    """
    return write_export(folder, lambda date: _files(plan, plan.picks[which], date))


def _files(plan: Plan, candidate: Candidate, date: str) -> Mapping[str, bytes]:
    spec, settings = plan.spec, planned_settings(plan.hardware)
    return export_files(
        plan.workload,
        plan.hardware,
        candidate.strategy,
        note=f"{_MARK}: predicted by autotune plan",
        launch=launch_script(spec.host, settings, spec.num_nodes),
        readme=guide_text(
            _origin(plan, candidate),
            plan.workload,
            plan.hardware,
            candidate.strategy,
            settings,
            is_measured=False,
        ),
        provenance=_provenance(plan, candidate, date),
    )


def _origin(plan: Plan, candidate: Candidate) -> str:
    prediction, workload = candidate.prediction, plan.workload
    lower, upper = prediction.peak_memory_lower_bytes, prediction.peak_memory_upper_bytes
    bounds, between = prediction.tokens_per_second_bounds, ""
    if bounds is not None:
        between = f" ({bounds[0]:,.0f} to {bounds[1]:,.0f})"
    disk = ""
    if candidate.strategy.uses_nvme:
        disk = f"""
`nvme_path` in `ds_config.json`, {plan.hardware.nvme_path}, is an assumed mount point of \
the disk: set yours."""
    return f"""\
**{_MARK}**: this strategy comes from `autotune plan`, which runs nothing.

{workload.model.name}, {workload.seq_len} tokens per sample, {workload.global_batch_size} samples \
per step, on {plan.spec}.
Predicted: {prediction.tokens_per_second:,.0f} tokens/s{between}, and a peak of \
{format_gib(prediction.peak_memory_bytes)} GiB per device
(bounds {format_gib_range(lower, upper)} GiB). To measure it, run `autotune search` on the machine.
The strategy {loss_words(plan.loss_class(candidate), plan.reference)}.{disk}"""


def _provenance(plan: Plan, candidate: Candidate, date: str) -> dict[str, Any]:
    return {
        "exported_at": date,
        "measured": False,
        "note": f"{_MARK}: predicted by autotune plan",
        "strategy": candidate.strategy.to_dict(),
        "strategy_in_words": str(candidate.strategy),
        "loss_class": str(plan.loss_class(candidate)),
        "prediction": asdict(candidate.prediction),
        "assumptions": list(plan_assumptions(plan)),
        "calibrated_from": plan.calibration.to_dict() if plan.calibration is not None else None,
        "environment": planned_settings(plan.hardware).to_dict(),
        "reference": plan.reference.to_dict(),
        "workload": plan.workload.to_dict(),
        "hardware": asdict(plan.spec.host),
        "num_nodes": plan.spec.num_nodes,
    }
