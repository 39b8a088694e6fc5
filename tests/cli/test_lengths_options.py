"""`--lengths`, `--data` and `--tokenizer`: one clear line for what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import autotune_here

PLAN = ("plan", "--model", "1.1B", "--hardware", "1xH100-80GB", "--quick", "--json")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--lengths", "none.txt"), "--lengths none.txt: no such file"),
        (("--data", "none.jsonl"), "--data needs --tokenizer"),
        (("--tokenizer", "folder"), "--tokenizer needs --data"),
        (("--lengths", "a", "--data", "b", "--tokenizer", "c"), "give one of them"),
        (("--data", "none.jsonl", "--tokenizer", "c"), "--data none.jsonl: no such file"),
    ],
)
@pytest.mark.parametrize("command", [PLAN, ("search", "--model", "tiny")], ids=("plan", "search"))
def test_what_cannot_be_is_one_line(
    command: tuple[str, ...], options: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    ended = autotune_here(*command, *options, folder=tmp_path)
    assert ended.returncode == 2
    assert words in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not ended.stdout


def test_a_plan_for_short_samples_joins_them(tmp_path: Path) -> None:
    path = tmp_path / "lengths.txt"
    path.write_text("\n".join(map(str, range(20, 900, 7))))
    ended = autotune_here(*PLAN, "--global-batch", "64", "--lengths", str(path), folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "padding_free" in json.dumps(json.loads(ended.stdout))
