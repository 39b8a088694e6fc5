"""`--from`: what a user has becomes the question and the baseline; and `export --format`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from command_line import autotune_here
from stored_study import store_study

YAML = """\
model_name_or_path: tiny
stage: sft
finetuning_type: full
dataset: mine
cutoff_len: 128
per_device_train_batch_size: 2
gradient_accumulation_steps: 4
learning_rate: 1.0e-4
bf16: true
deepspeed: zero.json
"""
JSON = {
    "train_micro_batch_size_per_gpu": "auto",
    "bf16": {"enabled": "auto"},
    "zero_optimization": {"stage": 3, "overlap_comm": False, "reduce_bucket_size": "auto"},
}
HARDWARE = ("--hardware", "2xH100-80GB", "--quick")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.yaml").write_text(YAML)
    (tmp_path / "zero.json").write_text(json.dumps(JSON))
    return tmp_path


def test_a_plan_takes_its_question_from_the_file(folder: Path) -> None:
    ran = autotune_here("plan", "--from", "mine.yaml", *HARDWARE, "--json", folder=folder)
    assert ran.returncode == 0, ran.stderr
    plan = json.loads(ran.stdout)
    workload = plan["workload"]
    assert workload["model"]["name"] == "tiny"
    assert (workload["seq_len"], workload["global_batch_size"]) == (128, 16)
    baseline = plan["baseline"]
    assert baseline["source"] == "mine.yaml"
    assert baseline["strategy"]["zero_stage"] == 3
    assert baseline["strategy"]["checkpoint_interval"] == 1
    assert baseline["strategy"]["reduce_bucket_size"] == 96 * 96
    best = plan["front"][plan["picks"]["throughput"]]["prediction"]
    speedup = best["tokens_per_second"] / baseline["prediction"]["tokens_per_second"]
    assert baseline["speedup"] == pytest.approx(speedup)
    assert baseline["speedup"] > 1


def test_a_plan_shows_the_row_of_the_file_beside_the_best(folder: Path) -> None:
    ran = autotune_here("plan", "--from", "mine.yaml", *HARDWARE, folder=folder)
    words = " ".join(ran.stdout.split())
    assert "Baseline (mine.yaml): Z3 mb2 ckpt1" in words
    assert " × yours, " in words
    assert "baseline: yours" in words


def test_keys_without_a_counterpart_are_said_once(folder: Path) -> None:
    ran = autotune_here("plan", "--from", "mine.yaml", *HARDWARE, folder=folder)
    lines = [line for line in ran.stderr.splitlines() if "left out" in line]
    assert lines == [
        "--from mine.yaml: keys without a counterpart here, left out: dataset, learning_rate"
    ]


def test_what_is_typed_wins_and_the_difference_is_said(folder: Path) -> None:
    typed = ("--seq-len", "64", "--global-batch=32", "--model", "tiny")
    ran = autotune_here("plan", "--from", "mine.yaml", *typed, *HARDWARE, "--json", folder=folder)
    workload = json.loads(ran.stdout)["workload"]
    assert (workload["seq_len"], workload["global_batch_size"]) == (64, 32)
    assert "it says 128; --seq-len 64 is used" in ran.stderr
    assert "its global batch is 16 on 2 devices; --global-batch 32 is used" in ran.stderr
    assert "--model" not in ran.stderr


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "no model anywhere": (("--from", "zero.json"), "--model is missing: zero.json names none"),
    "no file": (("--from", "no.yaml"), "--from no.yaml: no such file"),
    "a folder": (("--from", "."), "it is a folder, no regular file"),
    "a batch that the devices cannot share": (
        ("--from", "odd.yaml"),
        "choose 2 or 4 with --global-batch",
    ),
    "a micro-batch that does not divide": (
        ("--from", "mine.yaml", "--global-batch", "6"),
        "its micro-batches are 4 samples on 2 devices, which do not divide the global batch 6; "
        "choose 4 or 8",
    ),
    "a length that the model has not": (
        ("--from", "long.yaml"),
        "--from long.yaml: --seq-len 4096: tiny takes 1 to 512 tokens",
    ),
    "layers that the model has not": (
        ("--from", "targets.yaml"),
        "--from targets.yaml: --lora-targets: tiny has no linear layer 'w1'",
    ),
    "neither a model nor a file": ((), "--model is missing; give a preset"),
}


@pytest.mark.parametrize("kind", ["a pipe", "a device", "too large", "no text"])
def test_what_is_no_small_text_file_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "theirs.yaml"
    match kind:
        case "a pipe":
            os.mkfifo(path)
        case "a device":
            path.symlink_to("/dev/zero")
        case "too large":
            path.write_text("base_model: tiny\n" + "#" * 300_000)
        case "no text":
            path.write_bytes(b"base_model: \xff\xfe")
    ran = autotune_here("plan", "--from", "theirs.yaml", *HARDWARE, folder=tmp_path)
    assert ran.returncode == 2
    assert len(ran.stderr.splitlines()) == 1
    assert ran.stderr.startswith("autotune: --from theirs.yaml: cannot be read: ")


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("command", ["plan", "search"])
def test_what_cannot_be_is_refused_in_one_line(command: str, case: str, folder: Path) -> None:
    typed, words = REFUSED[case]
    (folder / "odd.yaml").write_text(
        "distributed_type: DEEPSPEED\nnum_processes: 3\ndeepspeed_config:\n"
        "  gradient_accumulation_steps: 1\n  deepspeed_config_file: odd.json\n"
    )
    odd = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2}}
    (folder / "odd.json").write_text(json.dumps(odd))
    (folder / "long.yaml").write_text(YAML.replace("128", "4096"))
    (folder / "targets.yaml").write_text(
        "base_model: tiny\nadapter: lora\nlora_target_modules: [w1]\nmicro_batch_size: 1\n"
        "sequence_len: 64\n"
    )
    before = sorted(folder.rglob("*"))
    more = HARDWARE if command == "plan" else ("--devices", "2", "--budget", "60s")
    if "odd.yaml" in typed:
        more = (*more, "--model", "tiny")
    ran = autotune_here(command, *typed, *more, folder=folder)
    assert ran.returncode == 2, ran.stderr
    assert ran.stdout == ""
    refusals = [line for line in ran.stderr.splitlines() if line.startswith("autotune: ")]
    assert len(refusals) == 1
    assert words in refusals[0]
    assert sorted(folder.rglob("*")) == before


def test_a_strategy_that_cannot_run_there_is_said_and_the_plan_goes_on(folder: Path) -> None:
    (folder / "ax.yaml").write_text(
        "base_model: tiny\nsequence_len: 64\nmicro_batch_size: 1\n"
        "gradient_accumulation_steps: 1\noptimizer: adamw_bnb_8bit\n"
        "deepspeed: deepspeed_configs/zero2.json\n"
    )
    ran = autotune_here("plan", "--from", "ax.yaml", *HARDWARE, "--json", folder=folder)
    assert ran.returncode == 0
    baseline = json.loads(ran.stdout)["baseline"]
    assert baseline["strategy"] is None
    assert "offload_optimizer needs optimizer adamw" in baseline["problem"]
    assert "its strategy cannot run here" in ran.stderr


@pytest.mark.parametrize("tool", ["deepspeed", "accelerate", "axolotl", "llamafactory"])
def test_an_export_for_a_tool_can_be_planned_from(tool: str, tmp_path: Path) -> None:
    store_study(tmp_path / "study")
    export = ("export", "study", "--format", tool)
    ran = autotune_here(*export, folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == f"study/exports/trial-0-{tool}\n"
    made = {path.name: path.read_bytes() for path in (tmp_path / ran.stdout.strip()).iterdir()}
    again = autotune_here(*export, folder=tmp_path)
    assert again.returncode == 0
    assert made == {
        path.name: path.read_bytes() for path in (tmp_path / ran.stdout.strip()).iterdir()
    }
    name = next((name for name in made if name.endswith(".yaml")), "ds_config.json")
    file = f"study/exports/trial-0-{tool}/{name}"
    plan = autotune_here("plan", "--from", file, *HARDWARE, "--json", folder=tmp_path)
    assert plan.returncode == 0, plan.stderr
    read = json.loads(plan.stdout)
    record = json.loads(autotune_here("report", "study", "--json", folder=tmp_path).stdout)
    assert read["baseline"]["strategy"] == record["trials"][0]["strategy"]
    assert read["workload"]["seq_len"] == record["workload"]["seq_len"]


def test_an_export_for_a_tool_writes_over_nothing(tmp_path: Path) -> None:
    store_study(tmp_path / "study")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "axolotl.yaml").write_text("mine: true\n")
    ran = autotune_here(
        "export", "study", "--format", "axolotl", "--out", "taken", folder=tmp_path
    )
    assert ran.returncode == 2
    assert "--out taken is not empty" in ran.stderr
    assert (tmp_path / "taken" / "axolotl.yaml").read_text() == "mine: true\n"


def test_a_format_that_is_none_is_refused(tmp_path: Path) -> None:
    store_study(tmp_path / "study")
    ran = autotune_here("export", "study", "--format", "trl", folder=tmp_path)
    assert ran.returncode == 2
    assert "--format 'trl': choose from folder, deepspeed, accelerate" in ran.stderr
