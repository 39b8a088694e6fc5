"""Wrong use ends in one clear line, exit status 2, no traceback, and nothing written over."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from command_line import autotune, autotune_here

from autotune.question.presets import PRESETS


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "13b"], "did you mean 13B?"),
        (["--model", "tiny", "--budget", "2 hours"], "--budget '2 hours': give a duration"),
        (["--model", "tiny", "--budget", "-5m"], "--budget"),
        (["--model", "tiny", "--trial-timeout", "soon"], "--trial-timeout 'soon'"),
        (["--model", "tiny", "--seq-len", "4096"], "--seq-len 4096: tiny takes 1 to 512 tokens"),
        (["--model", "tiny", "--global-batch", "7"], "--global-batch 7 is not divisible"),
        (["--model", "tiny", "--method", "lorra"], "--method 'lorra': choose from full"),
        (["--model", "tiny", "--method", "lora", "--lora-targets", "q"], "no linear layer 'q'"),
        (["--model", "tiny", "--method", "lora", "--lora-rank", "0"], "--lora-rank"),
        (["--model", "tiny", "--nvme-path", "nowhere"], "--nvme-path nowhere: no such folder"),
        (["--model", "tiny", "--nvme-path", "text.yaml"], "--nvme-path text.yaml: this is a file"),
        (["--model", "tiny", "--nvme-path", "/proc"], "--nvme-path /proc: not writable"),
        (["--model", "tiny", "--sampler", "best"], "--sampler 'best': choose from"),
        (["--model", "tiny", "--objective", "best"], "--objective 'best': choose from front"),
        (["--model", "tiny", "--min-gain", "1"], "--min-gain must be at least 0 and less than 1"),
        (["--model", "tiny", "--space", "defualt"], "--space defualt: no such file"),
        (["--model", "tiny", "--space", "typo.yaml"], "typo.yaml:3: knobs: there is no knob"),
        (["--model", "tiny", "--space", "text.yaml"], "text.yaml:2: "),
        (["--model", "tiny", "--space", "broken.yaml"], "broken.yaml:3: not valid YAML"),
        (["--model", "tiny", "--headroom", "1.5"], "--headroom must be"),
        (["--model", "tiny", "--trials", "0"], "--trials must be"),
        (["--model", "tiny", "--force-pruned", "-1"], "--force-pruned must be at least 0, got -1"),
        (
            ["--model", "tiny", "--devices", "2", "--devices-per-trial", "3"],
            "--devices-per-trial 3 does not divide 2 devices",
        ),
        (["--model", "tiny", "--confirm", "-1"], "--confirm must be at least 0, got -1"),
        (["--model", "tiny", "--seed", "-1"], "--seed must be"),
        (["--model", "tiny", "--method", "lora", "--lora-targets", ","], "has an empty name"),
        (["--model", "tiny", "--space", "huge.yaml"], "micro_batch_size 500000000 x 2 ranks"),
        (["--model", "tiny", "--devices", "0"], "--devices must be"),
        (["--model", "tiny", "--devices", "9999"], "--devices 9999: this machine has no GPU"),
        (["--model", "tiny", "--resume"], "--resume:"),
        (["--model", "tiny", "--out", "occupied"], "--out occupied: the folder is not empty"),
        (["--model", "tiny", "--out", "typo.yaml"], "this is a file"),
        (["--model", "tiny", "--out", "loop"], "--out loop: Too many levels of symbolic links"),
        (["--model", "tiny", "--out", "damaged"], "damaged/question.json cannot be read"),
        (["--model", "tiny", "--storage", "sqlite:///noise.db"], "noise.db cannot be used"),
        (["--model", "tiny", "--storage", "nonsense"], "nonsense cannot be used"),
        (["--model", "tiny", "--nodes-per-trial", "2"], "--nodes-per-trial 2: it is for a"),
        (["--model", "tiny", "--max-concurrent", "2"], "--max-concurrent 2: it is for a"),
        (["--model", "tiny", "--device-kind", "H100"], "--device-kind H100: it is for a"),
        (["--model", "tiny", "--ray", "auto", "--devices", "2"], "--devices 2: on a cluster"),
        (["--model", "tiny", "--ray", "auto", "--max-concurrent", "0"], "--max-concurrent must"),
        (["--model", "tiny", "--ray", "ray://head:10001"], "a client of Ray cannot drive"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    (tmp_path / "typo.yaml").write_text("knobs:\n  zero_stage: [1]\n  micro_batchsize: [1]\n")
    (tmp_path / "text.yaml").write_text("knobs:\n  micro_batch_size: ['5e8']\n")
    (tmp_path / "huge.yaml").write_text("knobs:\n  micro_batch_size: [5e8]\n")
    (tmp_path / "broken.yaml").write_text("knobs:\n  zero_stage: [1\n")
    (tmp_path / "noise.db").write_bytes(os.urandom(4096))
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "thesis.tex").write_text("years of work")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "question.json").write_text("{")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    ran = autotune_here("search", *arguments, folder=tmp_path)
    assert ran.returncode == 2, ran.stderr
    assert words in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1
    assert ran.stdout == ""
    for path, content in before.items():
        assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "13b"], "did you mean 13B?"),
        pytest.param(
            ["--model", "tiny", "--space", "broken.yaml"],
            "broken.yaml: no such file",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--model", "tiny", "--storage", "nonsense"],
            "nonsense cannot be used",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--model", "tiny", "--ray", "nowhere"],
            "--ray nowhere: no cluster answers there",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_process_that_is_used_wrongly_ends_with_status_2(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    ran = autotune("search", *arguments, folder=tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert words in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_results_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    ran = autotune("search", "--model", "tiny", "--out", "locked/study", folder=tmp_path)
    assert ran.returncode == 2
    assert "--out locked/study: the folder cannot be written" in ran.stderr


def test_a_folder_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = autotune_here("search", "--model", "tiny", "--out", "file/study", folder=tmp_path)
    assert ran.returncode == 2
    assert "--out file/study: the folder cannot be written" in ran.stderr


def test_a_study_whose_storage_is_damaged_is_named_and_left_alone(tmp_path: Path) -> None:
    ran = autotune("search", "--model", "tiny", "--budget", "1s", folder=tmp_path)
    (study,) = (tmp_path / "results").iterdir()
    (study / "study.db").write_bytes(b"not a database, but somebody's file" * 100)
    damaged = (study / "study.db").read_bytes()
    for command in ("report", "export"):
        ran = autotune_here(command, str(study), folder=tmp_path)
        assert ran.returncode == 2
        assert "study.db cannot be used" in ran.stderr
    ran = autotune("search", "--model", "tiny", "--budget", "1s", folder=tmp_path)
    assert ran.returncode == 2
    assert (study / "study.db").read_bytes() == damaged


@pytest.mark.parametrize("command", ["report", "export"])
def test_a_folder_that_is_no_study_is_named(tmp_path: Path, command: str) -> None:
    ran = autotune_here(command, "nowhere", folder=tmp_path)
    assert ran.returncode == 2
    assert "nowhere is not a study folder" in ran.stderr


def test_a_large_model_without_a_gpu_is_refused_at_once(tmp_path: Path) -> None:
    ran = autotune_here("search", "--model", "13B", folder=tmp_path)
    assert ran.returncode == 1
    assert "no GPU" in ran.stderr
    assert "--model tiny" in ran.stderr
    assert not (tmp_path / "results").exists()


def test_nothing_fits_says_what_is_missing_and_what_would_fit(tmp_path: Path) -> None:
    ran = autotune_here("search", "--model", "350M", "--headroom", "0.92", folder=tmp_path)
    assert ran.returncode == 1
    assert "Nothing fits" in ran.stderr
    assert "Predicted to fit" in ran.stderr


def test_nothing_fits_is_one_json_document_on_request(tmp_path: Path) -> None:
    ran = autotune_here(
        "search", "--model", "350M", "--headroom", "0.92", "--json", folder=tmp_path
    )
    assert ran.returncode == 1
    answer = json.loads(ran.stdout)
    assert answer["front"] == []
    assert answer["missing_bytes"] > 0
    assert answer["alternatives"]


@pytest.mark.slow
def test_a_model_folder_with_code_of_its_own_is_not_run(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    config = dict(PRESETS["tiny"].config) | {"auto_map": {"AutoConfig": "evil.Config"}}
    (model / "config.json").write_text(json.dumps(config))
    (model / "evil.py").write_text("raise SystemExit('ran')")
    ran = autotune("search", "--model", "model", "--budget", "1s", folder=tmp_path)
    assert "ran" not in ran.stdout.split()
    assert ran.returncode == 1
