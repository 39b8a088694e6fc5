"""A study read from its folder and storage."""

from __future__ import annotations

from pathlib import Path

from autotune.errors import ConfigError, StorageError
from autotune.question.goal import Goal
from autotune.question.question import Question
from autotune.space.own_training import reference_of
from autotune.space.search_space import SearchSpace
from autotune.study.baseline import Baseline
from autotune.study.folder import StudyFolder
from autotune.study.record import TrialRecord
from autotune.study.storage_address import shown
from autotune.study.summary import StudySummary

__all__ = ["open_record", "read_record", "read_study", "summarize"]


def read_record(folder: StudyFolder, question: Question, storage_url: str | None) -> TrialRecord:
    """The trials of a study folder, to be read alone.

    They need no search space, whose file takes longer to read than they do.

    Raises:
        StorageError: the storage cannot be opened, or there is none.
    """
    if storage_url is None and not folder.has_storage:
        raise StorageError(
            f"{folder.path} has no study.db; if the search used --storage, use the same here"
        )
    return TrialRecord(
        storage_url or folder.storage_url,
        folder.name,
        owner=folder.owner,
        choices={},
        memory_limit_bytes=question.memory_limit_bytes,
        must_exist=True,
        is_shared=storage_url is not None,
    )


def open_record(
    folder: StudyFolder, space: SearchSpace, question: Question, storage_url: str | None
) -> TrialRecord:
    """The trials of a study folder, to be added to; made if there are none yet.

    Raises:
        ConfigError: the storage holds the answer to another question under the folder's name.
        StorageError: the storage cannot be opened.
    """
    choices = {
        knob: tuple(dict.fromkeys((*values, space.reference.to_dict()[knob])))
        for knob, values in space.choices.items()
    }
    record = TrialRecord(
        storage_url or folder.storage_url,
        folder.name,
        owner=folder.owner,
        choices=choices,
        memory_limit_bytes=question.memory_limit_bytes,
        is_shared=storage_url is not None,
    )
    answered = Question.from_dict(record.keep_question(question.to_dict()))
    if differences := question.differences(answered):
        raise ConfigError(
            f"--storage: its study {folder.name} answers another question: "
            f"{'; '.join(differences)}. Ask the same one, or name another folder with --out"
        )
    return record


def summarize(
    folder: StudyFolder, record: TrialRecord, question: Question, storage_url: str | None
) -> StudySummary:
    """Everything there is to say about the study now."""
    environment = folder.read_environment()
    workload, own = question.workload, question.own_training
    asked: dict[str, object] = {
        "model": workload.model.name,
        "seq-len": workload.seq_len,
        "global-batch": workload.global_batch_size,
        "method": str(workload.method),
        "space": question.space_name,
        "headroom": question.headroom,
        "host-headroom": question.host_headroom,
        "seed": question.seed,
    }
    if workload.lengths is not None:
        asked["lengths"] = str(workload.lengths)
    if own is not None:
        asked["command"] = str(own.command)
    for flag in ("sampler", "objective"):
        if environment.get(flag):
            asked[flag] = environment[flag]
    return StudySummary(
        name=folder.name,
        question=asked,
        workload=workload,
        hardware=question.hardware,
        reference=reference_of(workload, question.hardware, own.knobs if own else {}),
        trials=tuple(record.trials()),
        elapsed_s=float(environment.get("elapsed_s", 0.0)),
        versions=environment.get("versions", {}),
        goal=_goal(environment.get("objective")),
        end_reason=environment.get("end_reason"),
        own_training=own,
        baseline=Baseline.from_dict(told) if (told := environment.get("baseline")) else None,
        folder=folder.path,
        storage_url=shown(storage_url) if storage_url else None,
    )


def _goal(name: str | None) -> Goal:
    """What the last search was after, as it wrote that down; the front where it did not."""
    return Goal(name) if name is not None and name in list(Goal) else Goal.FRONT


def read_study(path: Path, storage_url: str | None) -> StudySummary:
    """The study in a folder.

    Raises:
        StorageError: there is none, or its storage cannot be read.
    """
    folder = StudyFolder(path)
    question = folder.read_question()
    record = read_record(folder, question, storage_url)
    return summarize(folder, record, question, storage_url)
