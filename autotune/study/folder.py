"""The folder of a study on disk: its question, its lock, its logs. It explains itself.

results/<name>/
├── question.json       what was asked, the search space included
├── environment.json    versions and hardware as the last search saw them
├── study.db            the trials (Optuna storage), unless --storage names another place
├── report.txt          the answer, as it was last printed
├── trials/0007/        trial.json, and of each rank its output (rankN.out, rankN.err), its events
│                       (rankN.jsonl) and the phase it was in last (rankN.phase)
├── exports/trial-7/    what to train with
├── server.log          what the process prints that all ranks are forked from
├── ray.log             what Ray has to say, if trials ran on a cluster
└── lock                held while a search runs; contains its process id
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ConfigDict

from autotune.drafts import is_draft, remove_abandoned, write_file
from autotune.errors import AutotuneError, ConfigError, StorageError
from autotune.question.question import Question

__all__ = ["StudyFolder"]


class _Environment(BaseModel):
    """What others read of environment.json."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    versions: dict[str, str] = {}
    sampler: str | None = None
    objective: str | None = None
    elapsed_s: float = 0.0
    end_reason: str | None = None


_OWN_DRAFTS = frozenset(("lock", "question.tmp"))
"""All that a search leaves in a new folder that was killed before its question was written."""


class StudyFolder:
    """One study's folder.

    Args:
        path: where it is, or will be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    @property
    def name(self) -> str:
        """The study's name: the folder's when it was made, so that a folder may be moved."""
        return self._identity()["name"]

    @property
    def owner(self) -> str:
        """Where the folder was made, for telling its own trials in a shared storage."""
        return self._identity()["owner"]

    def _identity(self) -> dict[str, str]:
        path = self.path.resolve()
        identity = {"name": path.name, "owner": f"{socket.gethostname()}:{path}"}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            file = self.path / "question.json"
            identity |= json.loads(file.read_text(encoding="utf-8"))["study"]
        return identity

    @property
    def storage_url(self) -> str:
        """The embedded storage."""
        return f"sqlite:///{self.path.resolve() / 'study.db'}"

    @property
    def has_storage(self) -> bool:
        """Whether the embedded storage is there: trials may be kept in another place."""
        return (self.path / "study.db").exists()

    def open(self, question: Question, *, must_exist: bool = False) -> bool:
        """Make the folder, or find the same question in it, and lock it; whether it was there.

        Raises:
            ConfigError: the folder holds another question or something else, or does not exist
                where it must.
            StorageError: it cannot be written, or another search runs in it.
        """
        is_there = (self.path / "question.json").exists()
        if must_exist and not is_there:
            raise ConfigError(
                f"--resume: {self.path} holds no study; leave --resume out to start one"
            )
        if not is_there and self.path.is_dir() and not _OWN_DRAFTS.issuperset(self._names()):
            raise ConfigError(
                f"--out {self.path}: the folder is not empty and holds no study; name another"
            )
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"--out {self.path}: this is a file; name a folder")
        self._refuse_misplaced()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            remove_abandoned(self.path)
            if not is_there:
                self._write("question.json", {"study": self._identity()} | question.to_dict())
            (self.path / "trials").mkdir(exist_ok=True)
        except StorageError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise StorageError(
                f"--out {self.path}: the folder cannot be written: {error.strerror or error}"
            ) from error
        try:
            differences = question.differences(self.read_question())
            if differences:
                raise ConfigError(
                    f"--out {self.path} holds another question: {'; '.join(differences)}. "
                    "Ask the same one to resume it, or name another folder"
                )
        except AutotuneError:
            self.close()
            raise
        return is_there

    def _refuse_misplaced(self) -> None:
        """Whatever a search writes it can write: that shows before it runs, not at its end."""
        files = [self.path / name for name in ("environment.json", "report.txt", "server.log")]
        folders = [self.path / name for name in ("trials", "exports")]
        for path in files:
            if path.is_dir():
                raise ConfigError(f"--out: {path} is a folder, where a file belongs; move it away")
        for path in folders:
            if path.exists() and not path.is_dir():
                raise ConfigError(f"--out: {path} is a file, where a folder belongs; move it away")

    def _names(self) -> set[str]:
        return {entry.name for entry in self.path.iterdir() if not is_draft(entry.name)}

    def _take_lock(self) -> None:
        lock = (self.path / "lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            raise StorageError(
                f"--out {self.path}: another search is running in it (pid {holder}); "
                "wait for it, stop it, or name another folder"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock

    def close(self) -> None:
        """Let the lock go; a killed process lets go of it too."""
        if self._lock is not None:
            self._lock.truncate(0)
            self._lock.close()
            self._lock = None

    def read_question(self) -> Question:
        """What the study was asked.

        Raises:
            StorageError: there is no study here, or its question cannot be read.
        """
        file = self.path / "question.json"
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            return Question.from_dict({k: v for k, v in record.items() if k != "study"})
        except FileNotFoundError:
            raise StorageError(
                f"{self.path} is no study folder: it has no question.json"
            ) from None
        except (OSError, ValueError, AttributeError) as error:
            raise StorageError(f"{file} cannot be read: {error}") from error

    def read_environment(self) -> dict[str, Any]:
        """What the last search wrote about itself; empty where it wrote nothing, or others did."""
        try:
            text = (self.path / "environment.json").read_text(encoding="utf-8")
            return _Environment.model_validate_json(text).model_dump(exclude_unset=True)
        except (OSError, ValueError):
            return {}

    def write_environment(self, record: Mapping[str, Any]) -> None:
        """Write down versions, hardware and settings of this search.

        Raises:
            StorageError: it cannot be written.
        """
        self._write("environment.json", record)

    def trial_folder(self, number: int) -> Path:
        """A fresh folder for the logs of one trial."""
        folder = self.path / "trials" / f"{number:04d}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"{folder}: the folder of a trial cannot be made: {error.strerror or error}"
            ) from error
        return folder

    @property
    def exports(self) -> Path:
        """Where strategies are exported to."""
        return self.path / "exports"

    def write_report(self, text: str) -> None:
        """Keep the answer as it was last printed.

        Raises:
            StorageError: it cannot be written.
        """
        self._write_text("report.txt", text)

    def _write(self, name: str, record: Mapping[str, Any]) -> None:
        self._write_text(name, json.dumps(record, indent=1) + "\n")

    def _write_text(self, name: str, text: str) -> None:
        """Whole or not at all: a file that is half written when the process dies is no file."""
        path = self.path / name
        try:
            write_file(path, text)
        except OSError as error:
            raise StorageError(
                f"--out: {path} cannot be written: {error.strerror or error}"
            ) from error
