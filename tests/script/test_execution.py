"""A program runs as Python would run it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from autotune.script.execution import execute
from autotune.script.launch_words import read_command


def test_modules_are_found_beside_the_file_that_a_link_points_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, folder = tmp_path / "real", tmp_path / "folder"
    real.mkdir()
    folder.mkdir()
    (real / "beside_the_program.py").write_text("")
    (folder / "in_the_folder.py").write_text("")
    (real / "train.py").write_text(
        "import sys, beside_the_program, in_the_folder\n"
        "if __name__ == '__main__':\n    raise SystemExit(sys.argv[1])"
    )
    (folder / "train.py").symlink_to(real / "train.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", [])
    command = read_command(["train.py", "mine"], folder).command
    with pytest.raises(SystemExit, match="mine"):
        execute(command, command.filled({}), local_rank=0)
