from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def found(**environment: str) -> dict[str, str]:
    """What a fresh `autotune doctor` says of bytecode."""
    told = subprocess.run(
        [sys.executable, "-m", "autotune", "doctor", "--json"],
        env={name: value for name, value in os.environ.items() if "PYTHON" not in name}
        | environment,
        stdout=subprocess.PIPE,
        check=False,
    )
    checks = json.loads(told.stdout)["checks"]
    return next(check for check in checks if check["name"] == "bytecode")


def test_bytecode_that_is_never_written_is_warned_of(tmp_path: Path) -> None:
    check = found(PYTHONDONTWRITEBYTECODE="1", PYTHONPYCACHEPREFIX=str(tmp_path))
    assert check["status"] == "warning"
    assert "torch, transformers, deepspeed" in check["detail"]
    assert "unset PYTHONDONTWRITEBYTECODE" in check["remedy"]


def test_bytecode_that_will_be_written_is_well(tmp_path: Path) -> None:
    check = found(PYTHONPYCACHEPREFIX=str(tmp_path / "made later"))
    assert check["status"] == "ok"
    assert "from the first search on" in check["detail"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_cannot_be_written_is_told_from_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    check = found(PYTHONPYCACHEPREFIX=str(tmp_path))
    assert check["status"] == "warning"
    assert "PYTHONPYCACHEPREFIX" in check["remedy"]
