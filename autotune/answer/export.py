"""A strategy as a folder that plain DeepSpeed, the HF Trainer and Accelerate train with.

Does not know where trials are stored. The texts of the guide are `export_guide.py`'s.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autotune.answer.export_guide import guide, launch_script
from autotune.answer.export_settings import settings_of
from autotune.drafts import is_draft, remove_abandoned, write_folder
from autotune.errors import ConfigError, StorageError
from autotune.foreign.tool import Tool
from autotune.foreign.writer import write_setup
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

__all__ = [
    "export_files",
    "export_for_tool",
    "export_into",
    "export_trial",
    "exported_to",
    "write_export",
]

_PROVENANCE = "provenance.json"
_NOTE = "_note"

_CONFIG, _STRATEGY, _SCRIPT, _GUIDE = "ds_config.json", "strategy.yaml", "launch.sh", "README.md"

_NAMES = (_CONFIG, _STRATEGY, _SCRIPT, _GUIDE, _PROVENANCE)
"""The files of an export, in the order in which they are written."""

_OWNER_ONLY, _OWNERS_FILE = 0o700, 0o600
"""Permissions: an export holds paths and names of the machine that measured."""

_MOST_FOLDERS = 100
"""The most export folders of one trial; each holds files that the user has changed."""


class _OccupiedError(ConfigError):
    """The folder holds something else."""


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


def export_into(summary: StudySummary, trial: Trial, exports: Path) -> Path:
    """Export a trial below a study's folder; the folder that holds the export.

    An earlier export of the same strategy is left as it is, with the figures of then. Where
    something else is, such as an export that somebody has edited, a folder beside it is used.

    Args:
        summary: of the study.
        trial: with a measurement.
        exports: the folder of all exports.

    Raises:
        ConfigError: a file is in the place of a folder.
        StorageError: it cannot be written.
    """
    name = f"trial-{trial.number}"
    names = (name, *(f"{name}-{number}" for number in range(2, _MOST_FOLDERS)))
    for folder in (exports / each for each in names):
        try:
            return export_trial(summary, trial, folder)
        except _OccupiedError:
            if _is_same_training(_contents(folder, _NAMES), _files(summary, trial, "")):
                return folder
    raise StorageError(f"{exports} is full of exports of trial {trial.number}: remove some")


def export_for_tool(
    summary: StudySummary, trial: Trial, tool: Tool, folder: Path
) -> tuple[Path, str | None]:
    """Write a trial's strategy as the files that another tool reads.

    A folder that already holds these very files is left as it is.

    Returns:
        The folder, and what the files cannot say, in words.

    Raises:
        ConfigError: the trial has no measurement, or the folder holds something else.
        StorageError: the folder cannot be written.
    """
    if trial.measurement is None:
        raise ConfigError(
            f"--trial {trial.number} is {trial.state}: only a complete trial can be exported"
        )
    written = write_setup(tool, summary.workload, summary.hardware, trial.strategy)
    write_export(folder, lambda _: written.files)
    return folder, written.words(tool)


def exported_to(trial: Trial, exports: Path) -> Path | None:
    """The folder among a study's exports that holds one of this trial; None: there is none."""
    for folder in sorted(exports.glob(f"trial-{trial.number}*")):
        try:
            record = json.loads((folder / _PROVENANCE).read_text(encoding="utf-8"))["trial"]
            is_this = record["strategy"] == trial.strategy.to_dict()
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if is_this and record["number"] == trial.number:
            return folder
    return None


def _is_same_training(found: Mapping[str, bytes], files: Mapping[str, bytes]) -> bool:
    """Whether a folder holds a whole export that trains alike, whatever figures it gives."""
    is_whole = files.keys() <= found.keys()
    return is_whole and all(found[name] == files[name] for name in (_CONFIG, _STRATEGY))


def write_export(folder: Path, files_of: Callable[[str], Mapping[str, bytes]]) -> Path:
    """Write an export, whatever it is of: all of it appears at once.

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
    now = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        remove_abandoned(folder.parent)
        files = files_of(_date_in(_contents(folder, _NAMES)) or now)
        found = _contents(folder, tuple(files))
        if found == files:
            return folder
        # Of an export that was killed in a folder which could not be replaced.
        is_begun = _PROVENANCE not in found and found.items() <= files.items()
        if found and not is_begun:
            raise _OccupiedError(f"--out {folder} is not empty: choose a new folder with --out")
        modes = {name: _OWNER_ONLY if name == _SCRIPT else _OWNERS_FILE for name in files}
        write_folder(folder, files, modes, folder_mode=_OWNER_ONLY)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY) and folder.is_dir():
            raise _OccupiedError(f"--out {folder} is not empty: choose a new folder") from error
        if error.errno in (errno.EEXIST, errno.ENOTDIR):
            raise ConfigError(
                f"--out {folder} is not a folder: choose another with --out"
            ) from error
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
        trains_tower=workload.model.trains_tower,
    )
    texts = {
        _CONFIG: _to_json(config if note is None else {_NOTE: note} | config),
        _STRATEGY: exported.to_yaml(),
        _SCRIPT: launch,
        _GUIDE: readme,
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
    } | own_training_record(summary)


def own_training_record(summary: StudySummary) -> dict[str, Any]:
    """The user's own command, for `autotune run`; nothing where trials did not run one."""
    own = summary.own_training
    return {} if own is None else {"own_training": own.to_dict()}


def _to_json(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=2, allow_nan=False) + "\n"


def _contents(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    """What a folder holds, by name; empty for folders, and for all where any is none of ours.

    Args:
        folder: which may be missing.
        names: of the files that are ours.
    """
    if not folder.exists():
        return {}
    paths = [path for path in sorted(folder.iterdir()) if not is_draft(path.name)]
    is_ours = all(path.name in names for path in paths)
    return {path.name: path.read_bytes() if is_ours and path.is_file() else b"" for path in paths}


def _date_in(contents: Mapping[str, bytes]) -> str:
    """The date of the export that a folder holds; empty where it holds none."""
    try:
        return str(json.loads(contents[_PROVENANCE])["exported_at"])
    except (KeyError, TypeError, ValueError):
        return ""
