"""`search … -- COMMAND` and `run`, from the command line to the answer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import autotune, autotune_here, searching_with

from autotune.launch.launcher import Launcher
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
        other = autotune_here(*search, "--", *PLAIN[:-1], "9", folder=folder)
    assert again.returncode == 0, again.stderr
    assert "Your own run" not in again.stderr
    assert other.returncode == 2
    assert "-- COMMAND" in other.stderr
    export = next((folder / "study" / "exports").iterdir())
    assert "autotune run" in (export / "README.md").read_text()
    ran = autotune("run", str(export), folder=folder)
    assert ran.returncode == 0, ran.stderr
    assert "done" in ran.stdout
    # Its checkpoints are the user's again, and its schedule reaches what trains.
    assert (folder / "kept").exists()
    rates = [json.loads(line[6:]) for line in ran.stdout.splitlines() if line.startswith("rates")]
    assert rates[1] == pytest.approx([each / 1.5 for each in rates[0]])


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
