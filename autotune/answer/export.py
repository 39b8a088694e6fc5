"""A strategy as a folder that plain DeepSpeed, the HF Trainer and Accelerate train with.

Does not know where trials are stored. The texts of the guide are `export_guide.py`'s.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autotune.answer.export_guide import guide, launch_script
from autotune.answer.export_settings import settings_of
from autotune.errors import ConfigError, StorageError
from autotune.machine.hardware import Hardware
from autotune.question.workload import Workload
from autotune.space.deepspeed_config import (
    LEARNING_RATE,
    deepspeed_config,
    is_client_optimizer,
)
from autotune.space.strategy import Strategy
from autotune.space.strategy_file import StrategyFile
from autotune.study.summary import StudySummary
from autotune.trials.trial import Trial

__all__ = ["export_files", "export_trial", "write_export"]

_PROVENANCE = "provenance.json"
_NOTE = "_note"


def export_trial(summary: StudySummary, trial: Trial, folder: Path) -> Path:
    """Write the folder: ds_config.json, strategy.yaml, launch.sh, README.md, provenance.json.

    A folder that already holds this very export is left as it is.

    Returns:
        The folder.

    Raises:
        ConfigError: the trial has no measurement, or the folder holds something else.
        StorageError: the folder cannot be written.
    """
    if trial.measurement is None:
        raise ConfigError(
            f"--trial {trial.number} is {trial.state}: only a complete trial can be exported"
        )
    return write_export(folder, lambda date: _files(summary, trial, date))


def write_export(folder: Path, files_of: Callable[[str], Mapping[str, bytes]]) -> Path:
    """Write an export, whatever it is of.

    A folder that already holds this very export is left as it is.

    Args:
        folder: where to.
        files_of: the content of each file of an export made at a given time.

    Returns:
        The folder.

    Raises:
        ConfigError: the folder holds something else.
        StorageError: it cannot be written.
    """
    try:
        found = _contents(folder)
        if found:
            if found != files_of(_date_in(found)):
                raise ConfigError(f"--out {folder} is not empty: choose a new folder with --out")
            return folder
        _write(folder, files_of(datetime.now(UTC).isoformat(timespec="seconds")))
    except NotADirectoryError as error:
        raise ConfigError(f"--out {folder} is not a folder: choose another with --out") from error
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(
            f"--out {folder}: the export cannot be written: {reason}; choose another with --out"
        ) from error
    return folder


def _files(summary: StudySummary, trial: Trial, date: str) -> dict[str, bytes]:
    """The content of each file of the export."""
    hardware = summary.hardware
    return export_files(
        summary.workload,
        hardware,
        trial.strategy,
        launch=launch_script(hardware.host, settings_of(trial, hardware), hardware.num_nodes),
        readme=guide(summary, trial),
        provenance=_provenance(summary, trial, date),
    )


def export_files(
    workload: Workload,
    hardware: Hardware,
    strategy: Strategy,
    *,
    launch: str,
    readme: str,
    provenance: Mapping[str, Any],
    note: str | None = None,
) -> dict[str, bytes]:
    """The content of each file of an export.

    Args:
        workload: what is trained.
        hardware: all ranks.
        strategy: how.
        launch: `launch.sh`.
        readme: `README.md`.
        provenance: where the strategy comes from; `exported_at` is its date.
        note: stands in `ds_config.json` under a name that DeepSpeed does not read.
    """
    config = deepspeed_config(
        workload,
        strategy,
        num_devices=hardware.num_devices,
        device_type=hardware.device_type,
        nvme_path=hardware.nvme_path,
    )
    exported = StrategyFile(
        model=workload.model.name,
        seq_len=workload.seq_len,
        global_batch_size=workload.global_batch_size,
        method=workload.method,
        lora_targets=workload.lora_targets,
        learning_rate=LEARNING_RATE if is_client_optimizer(strategy) else None,
        strategy=strategy,
    )
    texts = {
        "ds_config.json": _to_json(config if note is None else {_NOTE: note} | config),
        "strategy.yaml": exported.to_yaml(),
        "launch.sh": launch,
        "README.md": readme,
        _PROVENANCE: _to_json(provenance),
    }
    return {name: text.encode() for name, text in texts.items()}


def _provenance(summary: StudySummary, trial: Trial, date: str) -> dict[str, Any]:
    """Where the strategy comes from, and what was predicted and measured of it."""
    return {
        "exported_at": date,
        "study": summary.name,
        "question": {flag: str(value) for flag, value in summary.question.items()},
        "trial": summary.record(trial),
        "environment": settings_of(trial, summary.hardware).to_dict(),
        "reference": summary.reference.to_dict(),
        "workload": summary.workload.to_dict(),
        "hardware": asdict(summary.hardware),
        "versions": dict(summary.versions),
    }


def _to_json(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=2, allow_nan=False) + "\n"


def _contents(folder: Path) -> dict[str, bytes]:
    """What a folder holds, by name; folders in it count as empty files."""
    if not folder.exists():
        return {}
    return {
        path.name: path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.iterdir())
    }


def _date_in(contents: Mapping[str, bytes]) -> str:
    """The date of the export that a folder holds; empty where it holds none."""
    try:
        return str(json.loads(contents[_PROVENANCE])["exported_at"])
    except (KeyError, TypeError, ValueError):
        return ""


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write all files or none."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        (folder / "launch.sh").chmod(0o755)
    except OSError:
        for name in files:
            (folder / name).unlink(missing_ok=True)
        raise
