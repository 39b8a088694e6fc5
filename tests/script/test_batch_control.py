"""Whether a command lets its batches be steered shows before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.errors import ConfigError
from autotune.script.batch_control import check_batches
from autotune.script.launch_words import read_command

SCRIPTS = Path(__file__).parents[1] / "own_scripts"


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.stem)
def test_trainers_are_known_and_plain_loops_need_a_placeholder(path: Path) -> None:
    command = read_command([path.name], SCRIPTS).command
    if path.stem in ("plain_deepspeed", "small_data"):
        with pytest.raises(ConfigError, match=r"\{micro_batch_size=4\}"):
            check_batches(command)
        command = read_command([path.name, "--bs", "{micro_batch_size=2}"], SCRIPTS).command
    check_batches(command)
