from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from command_line import autotune


@pytest.fixture(autouse=True)
def bytecode_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)


def found(folder: Path) -> dict[str, str]:
    """What a fresh `autotune doctor` says of bytecode."""
    checks = json.loads(autotune("doctor", "--json", folder=folder).stdout)["checks"]
    return next(check for check in checks if check["name"] == "bytecode")


def test_bytecode_that_is_never_written_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path))
    check = found(tmp_path)
    assert check["status"] == "warning"
    assert "torch, transformers, deepspeed" in check["detail"]
    assert "unset PYTHONDONTWRITEBYTECODE" in check["remedy"]


def test_bytecode_that_will_be_written_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path / "made later"))
    check = found(tmp_path)
    assert check["status"] == "ok"
    assert "the first search stores the bytecode" in check["detail"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_cannot_be_written_is_told_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o500)
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path))
    check = found(tmp_path)
    assert check["status"] == "warning"
    assert "PYTHONPYCACHEPREFIX" in check["remedy"]
