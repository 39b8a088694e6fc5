"""Reads the study in a folder, for the commands that show one."""

from __future__ import annotations

from pathlib import Path

from autotune.machine.software import detect_software
from autotune.study.folder import StudyFolder
from autotune.study.stored import open_record, space_of, summarize
from autotune.study.summary import StudySummary

__all__ = ["read_study"]


def read_study(path: Path, storage_url: str | None) -> StudySummary:
    """The study in a folder.

    Raises:
        StorageError: the folder has no study, or its storage cannot be read.
    """
    folder = StudyFolder(path)
    question = folder.read_question()
    space = space_of(question, detect_software())
    record = open_record(folder, space, question, storage_url, must_exist=True)
    return summarize(folder, record, question, storage_url)
