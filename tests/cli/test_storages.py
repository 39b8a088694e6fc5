"""`--storage`: no secret is told, a wrong one leaves nothing behind, readers write nothing."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from command_line import autotune_here
from stored_study import store_study

from autotune.study.folder import StudyFolder

SEARCH = ("search", "--model", "tiny", "--seq-len", "32", "--global-batch", "8")


def _tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "sqlite:///nowhere/studies.db",
        "sqlite:///noise.db",
        "postgresql+psycopg://me:hunter2@127.0.0.1:1/studies",
        "postgresql+psycopg://127.0.0.1:1/studies?user=me&password=hunter2",
        "postgresql+psycopg://me:hunter2/@127.0.0.1:1/studies",
        "postgresql+psycopg://me:hunter2{@127.0.0.1:1/studies",
    ],
)
@pytest.mark.parametrize("command", ["search", "report", "export"])
def test_a_wrong_storage_is_one_line_without_its_secret_and_leaves_nothing(
    tmp_path: Path, url: str, command: str
) -> None:
    (tmp_path / "noise.db").write_bytes(b"years of work" * 400)
    if command != "search":
        store_study(tmp_path / "study")
    before = _tree(tmp_path)
    arguments = SEARCH if command == "search" else (command, "study")
    ran = autotune_here(*arguments, "--storage", url, folder=tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert len(ran.stderr.splitlines()) == 1
    assert "cannot be used" in ran.stderr
    assert "hunter2" not in ran.stderr
    assert _tree(tmp_path) == before


@pytest.mark.parametrize("tables", ["", "CREATE TABLE thesis (chapter TEXT)"])
@pytest.mark.parametrize("command", ["report", "export"])
def test_reading_makes_no_tables(tmp_path: Path, command: str, tables: str) -> None:
    store_study(tmp_path / "study")
    with sqlite3.connect(tmp_path / "other.db") as database:
        database.execute(tables)
    database.close()
    before = _tree(tmp_path)
    ran = autotune_here(command, "study", "--storage", "sqlite:///other.db", folder=tmp_path)
    assert ran.returncode == 2
    assert "other.db cannot be used: it has no study" in ran.stderr
    assert _tree(tmp_path) == before


def test_a_storage_without_this_study_is_told(tmp_path: Path) -> None:
    store_study(tmp_path / "one", f"sqlite:///{tmp_path}/shared.db")
    store_study(tmp_path / "two")
    ran = autotune_here("report", "two", "--storage", "sqlite:///shared.db", folder=tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "it has no study two; use the --storage of the search" in ran.stderr


def test_the_environment_may_name_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_study(tmp_path / "study", f"sqlite:///{tmp_path}/shared.db")
    assert autotune_here("report", "study", folder=tmp_path).returncode == 2
    monkeypatch.setenv("AUTOTUNE_STORAGE", "sqlite:///shared.db")
    ran = autotune_here("report", "study", folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "Pareto front" in ran.stdout


def test_a_folder_that_reuse_cannot_read_leaves_nothing_behind(tmp_path: Path) -> None:
    ran = autotune_here(*SEARCH, "--reuse", "nowhere", folder=tmp_path)
    assert ran.returncode == 2
    assert "nowhere is not a study folder" in ran.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a%20b", "a?b", "a#b", "a{b}", "a b", "100%", "ä&'"])
def test_a_study_lies_in_the_folder_of_its_name(tmp_path: Path, name: str) -> None:
    store_study(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert StudyFolder(tmp_path / name).has_storage
    assert autotune_here("report", name, folder=tmp_path).returncode == 0
