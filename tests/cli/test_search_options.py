"""The record of a search's options, against the command that fills it."""

from __future__ import annotations

import inspect
from dataclasses import fields

import pytest

from autotune.cli.search import search
from autotune.cli.search_options import SearchOptions
from autotune.errors import ConfigError


def defaults(**typed: object) -> SearchOptions:
    parameters = inspect.signature(search).parameters
    values = {name: parameter.default for name, parameter in parameters.items()}
    return SearchOptions(**values | {"model": "tiny"} | typed)  # type: ignore[arg-type]


def test_the_record_has_a_field_for_each_option_and_no_other() -> None:
    options = list(inspect.signature(search).parameters)
    assert [field.name for field in fields(SearchOptions)] == options


def test_settings_hold_what_was_typed_in_units() -> None:
    settings = defaults(budget="90s", trial_timeout="2m", trials=7, confirm=0).settings(0.0)
    assert settings.budget.seconds == 90
    assert settings.trial_timeout_s == 120
    assert (settings.max_trials, settings.num_confirmed) == (7, 0)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ({"budget": "soon"}, "--budget"),
        ({"trial_timeout": "0s"}, "--trial-timeout"),
        ({"min_gain": 1.0}, "--min-gain"),
        ({"headroom": 1.0}, "--headroom"),
        ({"host_headroom": -0.1}, "--host-headroom"),
        ({"sampler": "best"}, "--sampler"),
        ({"objective": "speed"}, "--objective"),
    ],
)
def test_a_value_that_cannot_be_names_its_flag(typed: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        defaults(**typed).settings(0.0)
