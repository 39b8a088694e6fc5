"""What `autotune` answers before any command: help, its version, completion."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest
from command_line import autotune, autotune_here


@pytest.mark.parametrize("arguments", [(), ("-h",), ("--help",)])
def test_help_is_printed_and_is_no_failure(arguments: tuple[str, ...], tmp_path: Path) -> None:
    ran = autotune_here(*arguments, folder=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "Usage: autotune" in ran.stdout
    assert ran.stdout.count("Start with:") == 1


@pytest.mark.parametrize("command", ["search", "export", "plan", "report", "doctor"])
def test_each_command_has_a_short_flag_for_help(command: str, tmp_path: Path) -> None:
    ran = autotune_here(command, "-h", folder=tmp_path)
    assert ran.returncode == 0
    assert f"Usage: autotune {command}" in ran.stdout


def test_the_version_is_that_of_the_package(tmp_path: Path) -> None:
    ran = autotune_here("--version", folder=tmp_path)
    assert (ran.returncode, ran.stdout) == (0, f"autotune {version('autotune')}\n")


def test_completion_can_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    ran = autotune("--show-completion", folder=tmp_path)
    # A test runner that no shell has started has no shell to complete for.
    assert ran.returncode in (0, 1)
    assert "--install-completion" in autotune_here("--help", folder=tmp_path).stdout
    monkeypatch.setenv("_AUTOTUNE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "autotune re")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert autotune(folder=tmp_path).stdout.split() == ["report"]
