"""Temporary folders whose owners live, end, and are killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.launch.scratch_folder import ScratchFolder

_OWNER = """
import os, signal, sys
from pathlib import Path
from autotune.launch.scratch_folder import ScratchFolder
folder = ScratchFolder("test", Path(sys.argv[1]))
(folder.path / "file").write_text("x")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_folder_is_gone_when_it_is_closed(tmp_path: Path) -> None:
    with ScratchFolder("test", tmp_path) as folder:
        (folder / "file").write_text("x")
        assert folder.stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_a_killed_process_goes_with_the_next_of_its_kind(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", _OWNER, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    ScratchFolder("other", tmp_path).close()
    assert left.exists()
    with ScratchFolder("test", tmp_path) as own:
        assert list(tmp_path.iterdir()) == [own]


def test_a_folder_of_a_living_process_stays(tmp_path: Path) -> None:
    with ScratchFolder("test", tmp_path) as first, ScratchFolder("test", tmp_path) as second:
        assert {first, second} == set(tmp_path.iterdir())


def test_what_is_no_folder_or_leads_elsewhere_stays(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "autotune-test-link").symlink_to(target)
    (tmp_path / "autotune-test-file").touch()
    ScratchFolder("test", tmp_path).close()
    assert len(list(tmp_path.iterdir())) == 3


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        ScratchFolder("test", tmp_path / "nowhere")
