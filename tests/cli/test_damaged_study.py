"""A study's folder with files missing, cut off or foreign: it goes on, or says why not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import autotune_here
from recorded_study import SEARCH, record_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with one trial, its export and the log of it, as a search leaves them."""
    parent = tmp_path_factory.mktemp("whole")
    folder = record_study(parent, [(1000, 0.1)])
    (folder / "trials" / "0000").mkdir()
    (folder / "trials" / "0000" / "rank0.jsonl").write_text('{"event": "result"')
    exported = autotune_here("export", "study", folder=parent)
    assert exported.returncode == 0, exported.stderr
    assert autotune_here("report", "study", folder=parent).returncode == 0
    return folder


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


_WITH_SEARCHES = ("removed", "a folder")


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, marks=[pytest.mark.slow] if fault in _WITH_SEARCHES else [])
        for fault in _FAULTS
    ],
)
def test_a_damaged_study_goes_on_or_is_refused_in_one_line(
    study: Path, tmp_path: Path, fault: str
) -> None:
    for name in _FILES if fault in ("removed", "cut", "a folder") else _READ:
        for command in (("report", "study"), ("export", "study"), ("search",)):
            if command == ("search",):
                if name != "environment.json" and fault not in _WITH_SEARCHES:
                    continue
                command = SEARCH
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
