"""`search … -- COMMAND` and `run`, from the command line to the answer."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import sample_study
from command_line import autotune, autotune_here, searching_with

from autotune.cli.own_command import resumed
from autotune.errors import ConfigError
from autotune.launch.launcher import Launcher
from autotune.question.own_training import OwnTraining
from autotune.script.launch_words import read_command
from autotune.study.folder import StudyFolder
from autotune.study.stored import read_study

SCRIPTS = Path(__file__).parents[1] / "own_scripts"
PLAIN = [
    *("torchrun", "--nproc-per-node", "2", "plain_deepspeed.py", "--save", "kept"),
    *("--bs", "{micro_batch_size=2}", "--accum", "{gradient_accumulation_steps=4}"),
    *("--steps", "8"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SCRIPTS, tmp_path / "own"))


@pytest.mark.slow
def test_a_search_of_ones_own_script_ends_in_a_run_of_it(folder: Path, launcher: Launcher) -> None:
    search = ["search", "--budget", "3m", "--trials", "3", "--confirm", "0", "--out", "study"]
    with searching_with(launcher):
        found = autotune_here(*search, "--json", "--", *PLAIN, folder=folder)
    assert found.returncode == 0, found.stderr
    assert "Your own run: LlamaForCausalLM" in found.stderr
    answer = json.loads(found.stdout)
    # The first trial is theirs, the baseline of the answer.
    assert answer["baseline"]["trial"] == 0
    assert answer["trials"][0]["strategy"]["micro_batch_size"] == 2
    assert not (folder / "kept").exists()
    study = read_study(folder / "study", None)
    assert study.own_training is not None
    assert study.own_training.command.arguments == tuple(PLAIN[4:])
    with searching_with(launcher):
        again = autotune_here(*search, "--", *PLAIN, folder=folder)
        batch = autotune_here(*search, "--global-batch", "64", "--", *PLAIN, folder=folder)
        other = autotune_here(*search, "--", *PLAIN[:-1], "9", folder=folder)
    assert again.returncode == 0, again.stderr
    assert "Your own run" not in again.stderr
    assert batch.returncode == other.returncode == 2
    assert "16 samples a step" in batch.stderr
    # It is refused before it runs, and the study keeps its files.
    assert "-- COMMAND" in other.stderr
    assert "Your own run" not in other.stderr
    export = next((folder / "study" / "exports").iterdir())
    assert "autotune run" in (export / "README.md").read_text()
    ran = autotune("run", str(export), folder=folder)
    assert ran.returncode == 0, ran.stderr
    assert "done" in ran.stdout
    # Its checkpoints are the user's again, and its schedule reaches what trains.
    assert (folder / "kept").exists()
    rates = [json.loads(line[6:]) for line in ran.stdout.splitlines() if line.startswith("rates")]
    assert rates[1] == pytest.approx([each / 1.5 for each in rates[0]])


def study_of(folder: Path, words: list[str]) -> StudyFolder:
    """A folder whose search of a command ended before its first trial was written down."""
    shape = replace(sample_study.WORKLOAD, global_batch_size=16)
    own = OwnTraining(command=read_command(words, folder).command, is_predictable=True)
    study = StudyFolder(folder / "study")
    study.open(replace(sample_study.QUESTION, workload=shape, own_training=own))
    return study


@pytest.mark.parametrize(
    ("options", "command", "named"),
    [
        ({}, ["hf_trainer.py", "--lr", "2"], "-- COMMAND"),
        ({"global_batch": 64}, ["hf_trainer.py"], "16 samples a step"),
    ],
)
def test_a_study_is_resumed_by_its_own_command_alone(
    folder: Path, options: dict[str, int], command: list[str], named: str
) -> None:
    study = study_of(folder, ["hf_trainer.py"])
    asked = SimpleNamespace(**{"global_batch": None, "storage": None} | options)
    with closing(study), pytest.raises(ConfigError, match=re.escape(named)):
        resumed(study, read_command(command, folder), asked)  # type: ignore[arg-type]


def test_a_search_that_was_killed_before_its_first_trial_begins_anew(folder: Path) -> None:
    study = study_of(folder, ["hf_trainer.py"])
    asked = SimpleNamespace(global_batch=16, storage=None)
    with closing(study):
        launched = read_command(["hf_trainer.py"], folder)
        assert resumed(study, launched, asked) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "command", "named"),
    [
        ([], ["missing.py"], "missing.py"),
        ([], ["plain_deepspeed.py"], "{micro_batch_size=4}"),
        ([], ["plain_deepspeed.py", "{micro_batch_size=2}", "{batch}"], "{batch}"),
        ([], ["plain_deepspeed.py", "{micro_batch_size}"], "{micro_batch_size=4}"),
        (["--model", "tiny"], ["hf_trainer.py"], "--model"),
        (["--seq-len", "8"], ["hf_trainer.py"], "--seq-len"),
        (["--from", "ds.json"], ["hf_trainer.py"], "--from"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_runs(
    folder: Path, options: list[str], command: list[str], named: str
) -> None:
    before = sorted(folder.rglob("*"))
    refused = autotune_here("search", *options, "--out", "study", "--", *command, folder=folder)
    assert refused.returncode == 2
    assert named in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert sorted(folder.rglob("*")) == before


def test_a_word_that_is_no_command_is_refused(folder: Path) -> None:
    refused = autotune_here("search", "--model", "tiny", "hf_trainer.py", folder=folder)
    assert refused.returncode == 2
    assert "--" in refused.stderr


@pytest.mark.slow
def test_a_run_that_fails_keeps_its_output_and_no_study(folder: Path, launcher: Launcher) -> None:
    (folder / "bad.py").write_text("from transformers import Trainer\nraise ValueError('mine')")
    with searching_with(launcher):
        failed = autotune_here(
            "search", "--budget", "1m", "--out", "study", "--", "bad.py", folder=folder
        )
    assert failed.returncode == 1
    assert "mine" in failed.stderr.splitlines()[-1]
    assert "rank" in failed.stderr.splitlines()[-1]
    assert "mine" in (folder / "study" / "first-run" / "rank0.err").read_text()
    with pytest.raises(Exception, match="no question"):
        StudyFolder(folder / "study").read_question()


@pytest.mark.slow
def test_a_global_batch_that_contradicts_the_command_is_refused(
    folder: Path, launcher: Launcher
) -> None:
    with searching_with(launcher):
        refused = autotune_here(
            *("search", "--budget", "1m", "--out", "study", "--global-batch", "64"),
            *("--", *PLAIN),
            folder=folder,
        )
    assert refused.returncode == 2
    assert "16 samples a step" in refused.stderr


def test_run_refuses_what_is_no_export(folder: Path) -> None:
    for place in (folder, folder / "ds.json", folder / "missing"):
        refused = autotune_here("run", str(place), "--", "hf_trainer.py", folder=folder)
        assert refused.returncode == 2
        assert len(refused.stderr.splitlines()) == 1
