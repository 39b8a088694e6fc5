"""A training command: its placeholders and its record."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import ConfigError
from autotune.question.command import PLACEHOLDERS, CommandKind, TrainingCommand


def command(*arguments: str) -> TrainingCommand:
    return TrainingCommand(
        kind=CommandKind.FILE, target="train.py", arguments=arguments, folder="/somewhere"
    )


def test_values_stand_in_the_place_of_placeholders() -> None:
    own = command("--bs={micro_batch_size=4}", "--json", "{ds_config}", "plain")
    assert own.placeholders == {"micro_batch_size", "ds_config"}
    assert own.first_values == {"micro_batch_size": "4"}
    filled = own.filled({"micro_batch_size": "8", "ds_config": "/tmp/a b.json"})
    assert filled == ["--bs=8", "--json", "/tmp/a b.json", "plain"]


@pytest.mark.parametrize(
    "words", ["{micro_batch}", "{micro_batch_size=0}", "{micro_batch_size=x}"]
)
def test_a_placeholder_that_means_nothing_is_refused(words: str) -> None:
    with pytest.raises(ConfigError, match="-- COMMAND"):
        command(words)


def test_braces_that_are_no_placeholder_stay() -> None:
    own = command('{"a": 1}', "{}", "{ }")
    assert own.filled({}) == ['{"a": 1}', "{}", "{ }"]


@given(st.lists(st.text(st.characters(categories=("L", "N", "P"), exclude_characters="{}"))))
def test_the_record_is_read_back(words: list[str]) -> None:
    own = command(*(word for word in words if word.strip()))
    assert TrainingCommand.from_dict(json.loads(json.dumps(own.to_dict()))) == own


@pytest.mark.parametrize(
    "change",
    [{"kind": "shell"}, {"target": "a\nb"}, {"arguments": [1]}, {"extra": 1}, {"folder": ""}],
)
def test_a_record_that_is_none_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        TrainingCommand.from_dict(command("a").to_dict() | change)


def test_every_placeholder_is_explained() -> None:
    assert all(PLACEHOLDERS.values())
