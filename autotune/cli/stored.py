"""Opens a study folder to read it, for `export` and `report`."""

from __future__ import annotations

from pathlib import Path

from autotune.study.folder import StudyFolder
from autotune.study.stored import read_record, summarize
from autotune.study.summary import StudySummary

__all__ = ["read_study"]


def read_study(path: Path, storage_url: str | None) -> StudySummary:
    """The study in a folder.

    Raises:
        StorageError: there is none, or its storage cannot be read.
    """
    folder = StudyFolder(path)
    question = folder.read_question()
    record = read_record(folder, question, storage_url)
    return summarize(folder, record, question, storage_url)
