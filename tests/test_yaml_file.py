"""YAML is refused by its size, its depth and what its aliases stand for, before it is built."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import many, refusal

from autotune.errors import ConfigError
from autotune.yaml_file import Section, parse_yaml, read_text


class _Document(Section):
    a: object = None
    b: object = None


def _aliases(levels: int, each: int) -> str:
    """Lists of the list before, each so many times."""
    lines = ["a: &n0 [1]"]
    for level in range(1, levels):
        lines.append(f"n{level}: &n{level} [{', '.join([f'*n{level - 1}'] * each)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (_aliases(9, 9), "5: more than 10,000 values, with all that aliases stand for"),
        (_aliases(60, 1), "32: more than 32 levels of lists and mappings"),
        ("a: &a [*a]\n", "1: an alias within what it stands for"),
        ("a: &a\n  b: {c: *a}\n", "2: an alias within what it stands for"),
        ("a: &a {<<: *a}\n", "1: an alias within what it stands for"),
        ("[" * 10_000, "1: more than 32 levels"),
        ("{a: " * 10_000, "1: more than 32 levels"),
        ("".join(" " * depth + "a:\n" for depth in range(100)), "more than 32 levels"),
        ("a: [" + "1," * 20_000 + "1]", "1: more than 10,000 values"),
        ("".join(f"k{n}: 1\n" for n in range(6_000)), "more than 10,000 values"),
        ("#" * 20_000_000, "more than 262,144 characters"),
        ("a: *b", "1: not valid YAML: found undefined alias 'b'"),
        ("a: 1\n---\nb: 2\n", "2: not valid YAML"),
        ("a: \x1b[31m", "not valid YAML: unacceptable character #x001b"),
        ("a: 1\na: 2\n", "2: not valid YAML"),
        ("? [a]\n: 1\n", "keys should be strings"),
    ],
)
def test_what_is_beyond_the_limits_is_refused_with_its_line(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=r"^x\.yaml:") as caught:
        parse_yaml(text, "x.yaml", _Document)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


def test_aliases_that_stand_for_little_are_taken() -> None:
    document = parse_yaml("a: &x {k: [1, 2]}\nb: [*x, *x]\n", "x.yaml", _Document)
    assert document.b == [{"k": [1, 2]}] * 2
    assert parse_yaml("a: &x 1\nb: &x 2\n", "x.yaml", _Document).b == 2


@many(300)
@given(st.text("ab01:-?[]{}&*!|>'\"%#,. \n\t~<=", max_size=40))
def test_any_text_is_a_document_or_one_line(text: str) -> None:
    words = refusal(parse_yaml, text, "x.yaml", _Document)
    assert words is None or words.startswith("x.yaml:")


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigError, match=r"^--space pipe: cannot be read: it is a pipe"):
        read_text(tmp_path / "pipe.yaml", "--space pipe", if_missing="")
    with pytest.raises(ConfigError, match="cannot be read: File name too long"):
        read_text(tmp_path / ("x" * 300), "--space x", if_missing="")
    (tmp_path / "large.yaml").write_text("#" * 300_000)
    with pytest.raises(ConfigError, match="more than 262,144 bytes"):
        read_text(tmp_path / "large.yaml", "--space large", if_missing="")
