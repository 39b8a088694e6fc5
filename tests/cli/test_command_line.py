"""The command line that is offered to be pasted."""

from __future__ import annotations

import sys

import pytest

from autotune.nothing_fits.command_line import CommandLine


@pytest.mark.parametrize(
    "storage",
    [
        ("--storage", "postgresql://me:hidden@host/studies"),
        ("--storage=postgresql://me@host/studies?password=hidden",),
    ],
)
def test_a_command_to_paste_shows_no_password(
    monkeypatch: pytest.MonkeyPatch, storage: tuple[str, ...]
) -> None:
    monkeypatch.setattr(sys, "argv", ["autotune", "search", "--model", "70B", *storage])
    line = CommandLine.typed().having({"--model": "7B"})
    assert line.startswith("autotune search --model 7B ")
    assert "--storage" in line
    assert "host/studies" in line
    assert "hidden" not in line


def test_words_of_a_training_command_are_no_options() -> None:
    line = CommandLine(("search", "--budget", "5m", "--", "train.py", "--model", "x"))
    assert not line.has("--model")
    assert line.value("--model") is None
    pasted = line.having({"--model": "7B", "--budget": "9m"})
    assert pasted == "autotune search --budget 9m --model 7B -- train.py --model x"
