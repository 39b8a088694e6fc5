"""A study's folder with files missing, cut off or foreign: it goes on, or says why not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import autotune_here
from sample_study import complete, prediction

from autotune.machine.software import detect_software
from autotune.study.folder import StudyFolder
from autotune.study.stored import open_record, space_of
from autotune.trials.trial import Outcome

_SEARCH = ("search", "--model", "tiny", "--out", "study", "--budget", "1s")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with one trial, its export and the log of it, as a search leaves them."""
    parent = tmp_path_factory.mktemp("whole")
    assert autotune_here(*_SEARCH, folder=parent).returncode == 1
    folder = StudyFolder(parent / "study")
    question = folder.read_question()
    space = space_of(question, detect_software())
    record = open_record(folder, space, question, None)
    measurement = complete(0, 1000, 0.1).measurement
    assert measurement is not None
    running = record.start(space.reference, prediction(0.1))
    record.finish(running, Outcome(measurement=replace(measurement, losses=(1.0,))))
    record.close()
    folder.trial_folder(0).joinpath("rank0.jsonl").write_text('{"event": "result"')
    exported = autotune_here("export", "study", folder=parent)
    assert exported.returncode == 0, exported.stderr
    assert autotune_here("report", "study", folder=parent).returncode == 0
    return parent / "study"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _as_folder(path: Path) -> None:
    _remove(path)
    path.mkdir()
    (path / "mine").write_text("mine")


def _as(content: bytes) -> Callable[[Path], None]:
    def replace_it(path: Path) -> None:
        _remove(path)
        path.write_bytes(content)

    return replace_it


def _cut(path: Path) -> None:
    if path.is_file():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        _as(b"")(path)


_FAULTS = {
    "removed": _remove,
    "cut": _cut,
    "a folder": _as_folder,
    "empty": _as(b""),
    "noise": _as(b"\x00\xff\xfenoise" * 500),
    "null": _as(b"null"),
    "a list": _as(b"[1, 2]"),
    "another's JSON": _as(b'{"versions": 7, "elapsed_s": "long", "objective": [], "trial": 3}'),
}

_FILES = (
    "question.json",
    "environment.json",
    "study.db",
    "report.txt",
    "server.log",
    "lock",
    "trials",
    "trials/0000",
    "exports",
    "exports/trial-0",
    "exports/trial-0/provenance.json",
)


_READ = ("question.json", "environment.json", "study.db", "exports/trial-0/provenance.json")


@pytest.mark.parametrize("fault", _FAULTS)
def test_a_damaged_study_goes_on_or_is_refused_in_one_line(
    study: Path, tmp_path: Path, fault: str
) -> None:
    for name in _FILES if fault in ("removed", "cut", "a folder") else _READ:
        for command in (("report", "study"), ("export", "study"), ("search",)):
            if command == ("search",):
                if name != "environment.json" and fault not in ("removed", "a folder"):
                    continue
                command = _SEARCH
            shutil.rmtree(tmp_path / "study", ignore_errors=True)
            shutil.copytree(study, tmp_path / "study")
            _FAULTS[fault](tmp_path / "study" / name)
            ran = autotune_here(*command, folder=tmp_path)
            said = f"{command[0]} with {name} {fault}: {ran.returncode} {ran.stderr}"
            assert ran.returncode in (0, 1, 2), said
            assert "Traceback" not in ran.stderr, said
            errors = [line for line in ran.stderr.splitlines() if line.startswith("autotune: ")]
            assert len(errors) == (ran.returncode == 2), said
            if errors:
                assert "study" in errors[0], said
