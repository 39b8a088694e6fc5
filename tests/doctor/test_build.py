"""`autotune doctor --build`: what trials would compile is compiled before any search."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import autotune

from autotune.machine.extensions import compiled_extension


@pytest.mark.slow
def test_what_trials_would_compile_is_there_afterwards(tmp_path: Path) -> None:
    first = autotune("doctor", "--build", folder=tmp_path)
    assert first.returncode == 0, first.stderr
    assert compiled_extension("cpu_adam") is not None
    again = autotune("doctor", "--build", folder=tmp_path)
    assert "CPU Adam: already compiled" in again.stderr


@pytest.mark.slow
def test_a_build_that_fails_says_why_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho 'error: this compiler is broken' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    ran = autotune("doctor", "--build", folder=tmp_path)
    assert ran.returncode == 1
    assert "CPU Adam: did not compile" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert compiled_extension("cpu_adam") is None
