"""What is written whole or not at all, by writers that are killed at every step."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest

from autotune.drafts import is_draft, remove_abandoned, write_file, write_folder

FILES = {"one.json": b"1" * 5000, "two.sh": b"#!/bin/sh\n", "three": b"3"}
MODES = {"two.sh": 0o777}


def killed_after(num_steps: int, write: Callable[[], object]) -> bool:
    """Run a writer in a process of its own that SIGKILL ends after so many steps to the disk.

    Returns:
        Whether it was killed, and did not come to its end.
    """
    pid = os.fork()
    if pid == 0:
        left = num_steps

        def step(original: Callable[..., object]) -> Callable[..., object]:
            def counted(*arguments: object, **named: object) -> object:
                nonlocal left
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
                return original(*arguments, **named)

            return counted

        try:
            with (
                patch.multiple(
                    "os", **{name: step(getattr(os, name)) for name in ("open", "fsync", "mkdir")}
                ),
                patch.object(Path, "rename", step(Path.rename)),
            ):
                write()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_folder_is_there_whole_or_not_at_all_whenever_its_writer_is_killed(
    tmp_path: Path,
) -> None:
    target = tmp_path / "parent" / "export"
    num_killed = 0
    while killed_after(num_killed, lambda: write_folder(target, FILES, MODES)):
        assert not target.exists() or contents(target) == FILES
        if target.exists():
            break
        num_killed += 1
    assert num_killed > 6
    assert contents(target) == FILES
    assert os.access(target / "two.sh", os.X_OK)
    assert not os.access(target / "three", os.X_OK)
    # The last writer has removed what the others left.
    assert names(target.parent) == {"export"}


def test_a_file_is_the_old_one_or_the_new_one_whenever_its_writer_is_killed(
    tmp_path: Path,
) -> None:
    target = tmp_path / "report.txt"
    target.write_text("old")
    num_killed = 0
    while killed_after(num_killed, lambda: write_file(target, "new")):
        assert target.read_text() in ("old", "new")
        num_killed += 1
    assert num_killed > 3
    assert target.read_text() == "new"
    assert names(tmp_path) == {"report.txt"}


def test_an_empty_folder_keeps_its_permissions_and_one_that_holds_something_is_left_alone(
    tmp_path: Path,
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o750)
    (tmp_path / "link").symlink_to(empty)
    write_folder(tmp_path / "link", FILES, MODES)
    assert contents(empty) == FILES
    assert empty.stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "link").is_symlink()


def test_the_current_folder_is_filled_and_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inode = tmp_path.stat().st_ino
    write_folder(Path(), FILES, MODES)
    assert tmp_path.stat().st_ino == inode
    assert contents(tmp_path) == FILES


def test_the_draft_of_a_living_writer_and_what_is_the_users_stay(tmp_path: Path) -> None:
    (tmp_path / "thesis.tmp").write_text("years of work")
    kept: list[set[str]] = []
    original = os.fsync

    def look(handle: int) -> None:
        # Somebody else writes into the same folder meanwhile.
        if not kept:
            kept.append(names(tmp_path))
            remove_abandoned(tmp_path)
            kept.append(names(tmp_path))
        original(handle)

    with patch("os.fsync", look):
        write_file(tmp_path / "report.txt", "whole")
    assert kept[0] == kept[1]
    assert sum(map(is_draft, kept[0])) == 1
    assert names(tmp_path) == {"thesis.tmp", "report.txt"}


def test_a_write_that_fails_leaves_no_draft(tmp_path: Path) -> None:
    (tmp_path / "report.txt").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_file(tmp_path / "report.txt", "new")
    with patch("os.fsync", side_effect=OSError("no room")), pytest.raises(OSError, match="room"):
        write_folder(tmp_path / "export", FILES, MODES)
    assert names(tmp_path) == {"report.txt"}
