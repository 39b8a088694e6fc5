from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from mutations import many, mutations, refusal
from sample_study import QUESTION

from autotune.errors import ConfigError, StorageError
from autotune.study.folder import StudyFolder


def test_a_new_folder_keeps_its_question(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "deep" / "study")
    assert not folder.open(QUESTION)
    assert folder.read_question() == QUESTION
    folder.close()


def test_the_same_question_is_found_again(tmp_path: Path) -> None:
    for was_there in (False, True):
        folder = StudyFolder(tmp_path / "study")
        assert folder.open(QUESTION, must_exist=was_there) == was_there
        folder.close()


def test_another_question_is_refused_and_lets_the_lock_go(tmp_path: Path) -> None:
    first = StudyFolder(tmp_path / "study")
    first.open(QUESTION)
    first.close()
    second = StudyFolder(tmp_path / "study")
    with pytest.raises(ConfigError, match="holds another question: --seed 0 there, 7 here"):
        second.open(replace(QUESTION, seed=7))
    assert second.read_question() == QUESTION
    second.open(QUESTION)
    second.close()


def test_a_study_that_must_exist_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--resume: .* has no study"):
        StudyFolder(tmp_path / "study").open(QUESTION, must_exist=True)
    assert not (tmp_path / "study").exists()


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="not empty and has no study"):
        StudyFolder(tmp_path).open(QUESTION)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "study").write_text("")
    with pytest.raises(ConfigError, match="this is a file"):
        StudyFolder(tmp_path / "study").open(QUESTION)


def test_a_search_killed_before_its_question_was_written_leaves_nothing_in_the_way(
    tmp_path: Path,
) -> None:
    (tmp_path / "lock").write_text("123")
    (tmp_path / "question.tmp").write_text('{"workl')
    folder = StudyFolder(tmp_path)
    assert not folder.open(QUESTION)
    folder.close()


def test_two_holders_exclude_each_other_and_the_second_hears_the_pid(tmp_path: Path) -> None:
    first = StudyFolder(tmp_path / "study")
    first.open(QUESTION)
    with pytest.raises(StorageError, match=rf"another search is running .*pid {os.getpid()}\)"):
        StudyFolder(tmp_path / "study").open(QUESTION)
    first.close()


def test_a_killed_holder_lets_go_of_the_lock(tmp_path: Path) -> None:
    hold = (
        "import sys, time; from pathlib import Path; from sample_study import QUESTION;"
        "from autotune.study.folder import StudyFolder;"
        "folder = StudyFolder(Path(sys.argv[1])); folder.open(QUESTION);"
        "print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "study")],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        holder.send_signal(signal.SIGKILL)
    folder = StudyFolder(tmp_path / "study")
    assert folder.open(QUESTION)
    folder.close()


def test_a_question_that_cannot_be_read_is_told_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "question.json").write_text("{")
    with pytest.raises(StorageError, match=r"question\.json cannot be read"):
        StudyFolder(tmp_path).read_question()


def test_what_is_no_study_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is not a study folder"):
        StudyFolder(tmp_path).read_question()
    assert StudyFolder(tmp_path).read_environment() == {}


def test_a_new_study_is_its_owners_alone(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir(mode=0o755)
    for path in (tmp_path / "new", tmp_path / "empty"):
        folder = StudyFolder(path)
        folder.open(QUESTION)
        folder.close()
        assert path.stat().st_mode & 0o777 == 0o700
        assert (path / "question.json").stat().st_mode & 0o777 == 0o600


def test_what_was_made_is_taken_back_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir(mode=0o755)
    for path in (tmp_path / "deep" / "new", tmp_path / "empty"):
        folder = StudyFolder(path)
        folder.open(QUESTION)
        folder.undo()
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o755


def test_a_study_that_was_there_is_not_taken_back(tmp_path: Path) -> None:
    for _ in range(2):
        folder = StudyFolder(tmp_path / "study")
        folder.open(QUESTION)
        folder.close()
    folder.open(QUESTION)
    folder.undo()
    assert folder.read_question() == QUESTION


def test_a_link_to_nowhere_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "study").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="this is a broken link"):
        StudyFolder(tmp_path / "study").open(QUESTION)
    assert (tmp_path / "study").is_symlink()


def test_a_path_without_room_for_what_is_in_the_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path.joinpath(*["x" * 200] * 19)
    path = path / ("y" * (4050 - len(str(path))))
    with pytest.raises(ConfigError, match="--out: the path of the folder has 4,051 bytes"):
        StudyFolder(path).open(QUESTION)
    assert list(tmp_path.iterdir()) == []


def test_a_study_is_named_after_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert StudyFolder(Path()).name == tmp_path.name
    assert StudyFolder(Path("a/b")).storage_url == f"sqlite:///{tmp_path}/a/b/study.db"


ENVIRONMENT: dict[str, Any] = {
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "hardware": {"device_kind": "cpu"},
    "sampler": "predicted",
    "objective": "balanced",
    "elapsed_s": 12.5,
    "end_reason": None,
}


@many()
@given(mutations(ENVIRONMENT))
def test_any_environment_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, record: object
) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "environment.json").write_text(json.dumps(record))
    words = refusal(StudyFolder(folder).read_environment)
    assert words is None or f"{folder}/environment.json cannot be read: " in words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Expecting property name"),
        ("[]", "valid dictionary"),
        ('{"elapsed_s": null}', "elapsed_s: Input should be a valid number"),
        ('{"elapsed_s": 1e999}', "elapsed_s: Input should be less than or equal to"),
        ('{"versions": {"torch": 2}}', "versions.torch: Input should be a valid string"),
        ('{"sampler": "\\u001b[31m"}', "is not printed"),
        ("[" * 1000, "more than 64 levels deep"),
    ],
)
def test_an_environment_that_no_search_wrote_is_told_with_what_to_do(
    tmp_path: Path, text: str, words: str
) -> None:
    (tmp_path / "environment.json").write_text(text)
    with pytest.raises(StorageError, match=f"{words}.*; remove it: the next search"):
        StudyFolder(tmp_path).read_environment()


@pytest.mark.parametrize(
    ("study", "words"),
    [(5, "int"), ({"name": "a\nb"}, "study.name"), ({"owner": "\x1b"}, "study.owner")],
)
def test_a_study_s_name_in_its_question_is_checked(
    tmp_path: Path, study: object, words: str
) -> None:
    record = QUESTION.to_dict() | {"study": study}
    (tmp_path / "question.json").write_text(json.dumps(record))
    with pytest.raises(StorageError, match=rf"question\.json cannot be read: .*{words}"):
        StudyFolder(tmp_path).read_question()


def test_a_question_that_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "question.json")
    with pytest.raises(StorageError, match="it is a pipe, no regular file"):
        StudyFolder(tmp_path).read_question()
