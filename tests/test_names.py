"""Names are refused where they come in, and shown as they are nowhere else."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import many

from autotune.errors import ConfigError
from autotune.names import one_line, plain_name, printable, visible


@pytest.mark.parametrize(
    "name",
    [
        "H100-80GB",
        "NVIDIA GeForce RTX 4090",
        "Orin (nvgpu)",
        "meta-llama/Llama-3.1-8B",
        "../models/my model v1.2",
        "a%20b#c",
        "größe",
        "内存",
    ],
)
def test_a_name_that_means_itself_everywhere_is_taken(name: str) -> None:
    assert plain_name(name, "device") == name
    assert visible(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "X\ncommand\n#",
        "a\tb",
        "\x1b[31mred",
        "\x9b31m",
        "a\x00b",
        "a\x7f",
        "abc\u202e",
        "\u2066abc",
        "a\u200bb",
        "a\u2028b",
        "\udc80",
        "",
        " ",
        "x" * 256,
    ],
)
def test_what_cannot_be_read_is_no_name(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^device ") as caught:
        printable(name, "device", longest=255)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("character", list("`$\\\"';&|<>*?!{}[]"))
def test_what_steers_a_shell_or_markup_is_refused_in_a_name(character: str) -> None:
    with pytest.raises(ConfigError, match="which a shell or markup gives a meaning to"):
        plain_name(f"a{character}b", "device")


CHARACTERS = 'ab é内\n\t\x00\x1b\x7f\x9b\u200b\u2028\u202e\u2066\ue000[\\"'


@many()
@given(st.text(st.sampled_from(CHARACTERS + "\ud800")))
def test_the_visible_text_is_one_line_that_steers_nothing(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable()
    assert shown == text or not text.isprintable()


@many()
@given(st.text(st.sampled_from(CHARACTERS)))
def test_the_words_of_a_text_stand_in_one_line(text: str) -> None:
    shown = one_line(text)
    assert shown.isprintable()
    assert shown.split() == [visible(word) for word in text.split()]


@many()
@given(st.text(st.sampled_from(CHARACTERS)))
def test_a_json_text_says_the_same_when_all_of_it_is_visible(text: str) -> None:
    assert json.loads(visible(json.dumps(text, ensure_ascii=False))) == text
