"""The folder of a study on disk: its question, its lock, its logs. It explains itself.

results/<name>/
├── question.json       what was asked, the search space included
├── environment.json    versions and hardware as the last search saw them
├── study.db            the trials (Optuna storage), unless --storage names another place
├── report.txt          the answer, as it was last printed
├── first-run/          output of the user's own command, where it failed as it is
├── model/              the configuration of the model that the user's own command trains
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
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from autotune.drafts import is_draft, remove_abandoned, write_file
from autotune.errors import AutotuneError, ConfigError, StorageError
from autotune.names import PrintableText, printable, visible
from autotune.question.question import Question
from autotune.study.baseline import Baseline
from autotune.study.storage_address import file_url
from autotune.text_file import load_json

__all__ = ["StudyFolder"]


_OLD_DRAFT = "question.tmp"
"""The draft of a question, as versions before `drafts.py` named it; no longer written."""

_FIRST_RUN = "first-run"

_OWN_DRAFTS = frozenset(("lock", _OLD_DRAFT, _FIRST_RUN, "model", "server.log", "ray.log"))
"""All that a search leaves in a new folder that ended before its question was written."""

_LONGEST_S = 1e9
"""Thirty years, of all searches of a study."""


def _read_baseline(record: dict[str, Any]) -> dict[str, Any]:
    return Baseline.from_dict(record).to_dict()


class _Environment(BaseModel):
    """What is read of `environment.json`; the rest is for people."""

    model_config = ConfigDict(extra="allow", strict=True)

    versions: dict[PrintableText, PrintableText] = Field(default={}, max_length=100)
    sampler: PrintableText = ""
    objective: PrintableText = ""
    elapsed_s: float = Field(default=0.0, ge=0, le=_LONGEST_S)
    end_reason: Annotated[str, AfterValidator(visible)] | None = None
    baseline: Annotated[dict[str, Any], AfterValidator(_read_baseline)] | None = None


_MADE_WITHIN = ("trials", "question.json", _OLD_DRAFT, "study.db", "lock")
"""What there is of a new study before its first trial, the lock last."""

_OWNER_ONLY = 0o700
_OWNERS_FILE = 0o600
"""Permissions of what holds paths and host names."""

_PATH_MAX = 4096
"""The longest path of Linux in bytes."""

_LONGEST_BELOW = 128
"""Bytes for the longest path within a study's folder."""


class StudyFolder:
    """One study's folder.

    Args:
        path: where it is, or will be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None
        self._made: list[Path] = []
        self._mode_before: int | None = None

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
            kept = load_json(file)["study"]
            identity |= {key: kept[key] for key in identity if isinstance(kept[key], str)}
        return identity

    @property
    def storage_url(self) -> str:
        """The embedded storage."""
        return file_url(self.path.resolve() / "study.db")

    @property
    def has_storage(self) -> bool:
        """Whether the embedded storage is there: trials may be kept in another place."""
        return (self.path / "study.db").exists()

    def open(self, question: Question, *, must_exist: bool = False) -> bool:
        """Make the folder, or find the same question in it, and lock it; whether it was there.

        It holds paths and the host's name, so a new one is readable by its owner only.

        Raises:
            ConfigError: the folder holds another question or something else, or does not exist
                where it must.
            StorageError: it cannot be written, or another search runs in it.
        """
        try:
            is_there = self._looked_at(must_exist)
            self._check_path()
            self._refuse_misplaced()
            if self._lock is None:
                if not is_there:
                    self._make()
                self._take_lock()
            remove_abandoned(self.path)
            if not is_there:
                self._write("question.json", {"study": self._identity()} | question.to_dict())
            (self.path / "trials").mkdir(exist_ok=True)
        except StorageError:
            if self._lock is not None:
                self.undo()
            raise
        except OSError as error:
            self.undo()
            raise StorageError(
                f"--out {self.path}: the folder cannot be written: {error.strerror or error}"
            ) from error
        try:
            differences = question.differences(self.read_question())
            if differences:
                raise ConfigError(
                    f"--out {self.path} holds another question: {'; '.join(differences)}. "
                    "Ask the same question to resume it, or choose another folder"
                )
        except AutotuneError:
            self.close()
            raise
        return is_there

    def reserve(self, *, must_exist: bool = False) -> None:
        """Make the folder and lock it, before the question is known; `open` goes on from there.

        Raises:
            ConfigError: the folder holds something else, or does not exist where it must.
            StorageError: it cannot be written, or another search runs in it.
        """
        try:
            is_there = self._looked_at(must_exist)
            self._check_path()
            self._refuse_misplaced()
            if not is_there:
                self._make()
            self._take_lock()
        except OSError as error:
            self.undo()
            raise StorageError(
                f"--out {self.path}: the folder cannot be written: {error.strerror or error}"
            ) from error

    def _looked_at(self, must_exist: bool) -> bool:
        """Whether a study is there; refuses what a new one must not be written into."""
        is_there = (self.path / "question.json").exists()
        if must_exist and not is_there:
            raise ConfigError(
                f"--resume: --out {self.path} has no study; omit --resume to start one"
            )
        if not is_there and self.path.is_dir() and not _OWN_DRAFTS.issuperset(self._names()):
            raise ConfigError(
                f"--out {self.path}: the folder is not empty and has no study; choose another"
            )
        if os.path.lexists(self.path) and not self.path.is_dir():
            what = "a file" if self.path.exists() else "a broken link"
            raise ConfigError(f"--out {self.path}: this is {what}; choose a folder")
        return is_there

    def _refuse_misplaced(self) -> None:
        """Whatever a search writes it can write: that shows before it runs, not at its end."""
        files = [self.path / name for name in ("environment.json", "report.txt", "server.log")]
        folders = [self.path / name for name in ("trials", "exports")]
        for path in files:
            if path.is_dir():
                raise ConfigError(f"--out: {path} must be a file, but is a folder; move it away")
        for path in folders:
            if path.exists() and not path.is_dir():
                raise ConfigError(f"--out: {path} must be a folder, but is a file; move it away")

    def _check_path(self) -> None:
        """Refuse what nothing can be kept in, before anything is made."""
        file_url(self.path.resolve())
        longest = len(os.fsencode(self.path.resolve())) + _LONGEST_BELOW
        if longest > _PATH_MAX:
            raise ConfigError(
                f"--out: the path of the folder has {longest - _LONGEST_BELOW:,} bytes; "
                f"choose one with at most {_PATH_MAX - _LONGEST_BELOW:,}"
            )

    def _make(self) -> None:
        """A folder of the owner's alone, and a note of what there was not before."""
        missing = [path for path in (self.path, *self.path.parents) if not os.path.lexists(path)]
        self._made = [self.path / name for name in _MADE_WITHIN] + missing
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path not in missing:
            self._mode_before = stat.S_IMODE(self.path.stat().st_mode)
        self.path.mkdir(mode=_OWNER_ONLY, exist_ok=True)
        # An empty folder that was there; of a file system without permissions none are asked.
        with contextlib.suppress(PermissionError):
            self.path.chmod(_OWNER_ONLY)

    def undo(self) -> None:
        """Take back what `open` has made, where what comes after it has failed; and close."""
        self.close()
        if self._mode_before is not None:
            with contextlib.suppress(OSError):
                self.path.chmod(self._mode_before)
        for path in self._made:
            with contextlib.suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        self._made = []

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
                "wait for it, stop it, or choose another folder"
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
            record = dict(load_json(file))
            for key, value in dict(record.pop("study", {})).items():
                printable(str(value), f"study.{key}")
            return Question.from_dict(record)
        except FileNotFoundError:
            raise StorageError(
                f"{self.path} is not a study folder: it has no question.json"
            ) from None
        except (OSError, TypeError, ValueError) as error:
            raise StorageError(f"{file} cannot be read: {visible(str(error))}") from error

    def read_environment(self) -> dict[str, Any]:
        """What the last search wrote about itself; empty where it wrote nothing.

        Raises:
            StorageError: the file says what no search writes.
        """
        file = self.path / "environment.json"
        try:
            return _Environment.model_validate(load_json(file)).model_dump(exclude_unset=True)
        except FileNotFoundError:
            return {}
        except ValidationError as error:
            mistake = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in mistake["loc"])
            reason = f"{where}: {mistake['msg']}" if where else mistake["msg"]
        except (OSError, ValueError) as error:
            reason = str(error)
        raise StorageError(
            f"{file} cannot be read: {visible(reason)}; remove it: the next "
            "search writes a new one"
        )

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
                f"{folder}: the folder of a trial cannot be created: {error.strerror or error}"
            ) from error
        return folder

    @property
    def first_run(self) -> Path:
        """Where the user's own command runs as it is, before the question is known."""
        return self.path / _FIRST_RUN

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
            write_file(path, text, mode=_OWNERS_FILE)
        except OSError as error:
            raise StorageError(
                f"--out: {path} cannot be written: {error.strerror or error}"
            ) from error
