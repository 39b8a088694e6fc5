"""The first section of an export's README: the user's own command."""

from __future__ import annotations

import shlex

from autotune.answer.export_guide import own_training_section
from autotune.question.command import CommandKind, TrainingCommand


def test_the_guide_runs_the_recorded_command_with_all_its_launcher_set() -> None:
    words = ("--eos", "<|end|>", "it's", '{"a": 1}', "$(touch x)", "```", "")
    command = TrainingCommand(
        kind=CommandKind.FILE,
        target="train.py",
        arguments=words,
        folder="/f",
        passes_local_rank=True,
    )
    text = own_training_section(command)
    assert "\nautotune run EXPORT\n" in text
    shown = next(line for line in text.splitlines() if line.startswith("train.py"))
    assert shlex.split(shown) == ["train.py", *words]
    # No word ends the block that it stands in.
    assert text.count("````") == 2
