"""Commands as users give them to launchers, read by the launchers' own parsers."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from autotune.errors import ConfigError
from autotune.question.command import CommandKind, TrainingCommand
from autotune.script.launch_words import read_command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text("")
    (tmp_path / "run").write_text("#!/bin/bash\npython train.py")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "num"),
    [
        ("train.py --lr 1", None),
        ("python train.py --lr 1", None),
        ("/usr/bin/python3.12 -u train.py --lr 1", None),
        ("/opt/env/bin/torchrun --nproc-per-node 2 train.py --lr 1", 2),
        ("torchrun --nproc-per-node 2 train.py --lr 1", 2),
        ("torchrun --standalone --nproc_per_node=4 train.py --lr 1", 4),
        ("python -m torch.distributed.run --nproc-per-node 2 train.py --lr 1", 2),
        ("deepspeed --num_gpus 2 train.py --lr 1", 2),
        ("deepspeed --include localhost:0,2 train.py --lr 1", 2),
        ("accelerate launch --num_processes 3 --use_deepspeed train.py --lr 1", 3),
    ],
)
def test_a_script_is_found_behind_its_launcher(folder: Path, words: str, num: int | None) -> None:
    launched = read_command(words.split(), folder)
    assert launched.num_processes == num
    assert launched.command.kind is CommandKind.FILE
    assert launched.command.target == "train.py"
    assert launched.command.arguments == ("--lr", "1")


def test_the_deepspeed_launcher_gives_each_rank_its_local_rank(folder: Path) -> None:
    words = ["deepspeed", "--num_gpus", "1", "train.py"]
    assert read_command(words, folder).command.passes_local_rank
    words.insert(1, "--no_local_rank")
    assert not read_command(words, folder).command.passes_local_rank


def test_accelerates_configuration_becomes_the_environment(folder: Path) -> None:
    (folder / "config.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: DEEPSPEED\nnum_processes: 2\n"
        "num_machines: 1\nmachine_rank: 0\nmixed_precision: bf16\nuse_cpu: false\n"
        "deepspeed_config:\n  zero_stage: 3\n  gradient_accumulation_steps: 4\n"
    )
    words = ["accelerate", "launch", "--config_file", str(folder / "config.yaml"), "train.py"]
    launched = read_command(words, folder)
    assert launched.num_processes == 2
    assert launched.command.environment["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert launched.command.environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"


def test_accelerates_variables_are_read_back_and_say_nothing_of_the_shell(folder: Path) -> None:
    words = ["accelerate", "launch", "--use_deepspeed", "--num_processes", "2", "train.py"]
    command = read_command(words, folder).command
    assert command.environment["ACCELERATE_CONFIG_DS_FIELDS"] == ""
    assert "PYTHONPATH" not in command.environment
    assert TrainingCommand.from_dict(command.to_dict()) == command


def test_words_are_any_that_a_shell_gives(folder: Path) -> None:
    odd = ["", '{"a": [1, 2]}', "it's", "ü <|im_end|>", "$(rm x)", "x" * 10_000]
    command = read_command(["train.py", *odd], folder).command
    assert command.filled({}) == odd
    assert TrainingCommand.from_dict(command.to_dict()) == command
    # What is shown can be pasted.
    assert shlex.split(str(command)) == ["train.py", *odd]
    assert str(read_command(["pytest", "-q"], folder).command) == "pytest -q"


@pytest.mark.parametrize(
    "words",
    [
        ["--hub_token", "something"],
        ["--hub_token=something"],
        ["--wandb-api-key", "0123"],
        ["--password", "x"],
        ["--token", "hf_abcdefghijklmnopqrstuv"],
        ["--tracking-uri", "https://me:word@host/x"],
    ],
)
def test_a_secret_is_refused_and_not_repeated(folder: Path, words: list[str]) -> None:
    with pytest.raises(ConfigError, match="secret") as refused:
        read_command(["train.py", *words], folder)
    assert words[-1].rpartition("=")[2] not in str(refused.value)


def test_what_only_sounds_like_a_secret_is_taken(folder: Path) -> None:
    words = ["--eos_token", "</s>", "--use_auth_token", "True", "--max_tokens", "5", "--hub_token"]
    assert read_command(["train.py", *words], folder).command.arguments == tuple(words)


def test_a_module_and_a_console_script_are_commands(folder: Path) -> None:
    module = read_command(["-m", "package", "--a"], folder).command
    assert (module.kind, module.target) == (CommandKind.MODULE, "package")
    entry = read_command(["pytest", "-q"], folder).command
    assert entry.kind is CommandKind.FUNCTION
    trl = read_command(["trl", "sft", "--model_name_or_path", "x"], folder).command
    assert (trl.kind, trl.target) == (CommandKind.MODULE, "trl.scripts.sft")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "training command"),
        (["missing.py"], "missing.py"),
        (["no-such-program"], "no-such-program"),
        (["run"], "no Python program"),
        (["package"], "package"),
        (["--lr", "1"], "--lr"),
        (["python"], "needs a script"),
        (["-m"], "-m needs"),
        (["-m", "a b"], "no name of a module"),
        (["-m", "not_there_at_all"], "not_there_at_all"),
        (["torchrun"], "torchrun"),
        (["torchrun", "--no-such-flag", "train.py"], "torchrun"),
        (["torchrun", "--nnodes", "2", "train.py"], "--nnodes"),
        (["deepspeed", "--num_gpus", "many", "train.py"], "deepspeed"),
        (
            ["accelerate", "launch", "--num_machines", "2", "--num_processes", "2", "train.py"],
            "--",
        ),
        (["accelerate", "launch", "--config_file", "missing.yaml", "train.py"], "missing.yaml"),
        (["train.py", "a\x1b[31m"], "U+001B"),
    ],
)
def test_what_cannot_be_run_is_refused_in_a_line(
    folder: Path, words: list[str], named: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        read_command(words, folder)
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)
