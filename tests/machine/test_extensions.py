"""Locks that killed builds leave behind are removed; locks of builds that go on are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.machine.extensions import (
    cuda_toolkit,
    extensions_folders,
    libaio_header,
    readable_architectures,
    remove_abandoned_locks,
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "cpu_adam").mkdir()
    return tmp_path / "cpu_adam"


def test_torch_keeps_extensions_in_the_folder_it_is_told(folder: Path) -> None:
    assert extensions_folders() == [folder.parent]


def test_a_lock_that_nobody_has_open_is_removed(folder: Path) -> None:
    lock = folder / "lock"
    lock.touch()
    assert remove_abandoned_locks() == [lock]
    assert not lock.exists()


def test_a_lock_that_a_build_has_open_is_left_alone(folder: Path) -> None:
    lock = folder / "lock"
    with lock.open("w"):
        assert remove_abandoned_locks() == []
    assert lock.exists()


def test_nothing_else_is_touched(folder: Path) -> None:
    (folder / "cpu_adam.so").touch()
    assert remove_abandoned_locks() == []
    assert (folder / "cpu_adam.so").exists()


def test_libaio_is_found_where_the_compiler_would_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = tmp_path / "libaio.h"
    header.touch()
    monkeypatch.setenv("CFLAGS", f"-O2 -I{tmp_path}")
    assert libaio_header() == header


def test_the_cuda_toolkit_is_one_that_has_nvcc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert cuda_toolkit() is None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch()
    assert cuda_toolkit() == tmp_path


def test_architectures_lose_the_letters_that_deepspeed_cannot_read() -> None:
    assert readable_architectures("8.0;9.0a;10.0f+PTX") == "8.0;9.0;10.0+PTX"
