"""Only regular files of some size are read, and JSON only of some depth."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from autotune.text_file import MOST_BYTES, load_json, load_text, parse_json


def test_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"größe": [1, {"b": null}]}')
    assert load_json(tmp_path / "a.json") == {"größe": [1, {"b": None}]}


def test_pipes_devices_folders_and_sockets_are_refused_before_they_are_opened(
    tmp_path: Path,
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for name, kind in (
            ("pipe", "a pipe"),
            ("link", "a device"),
            ("socket", "a socket"),
            (".", "a folder"),
        ):
            with pytest.raises(OSError, match=f"^it is {kind}, no regular file$"):
                load_text(tmp_path / name)


def test_a_file_beyond_the_limit_is_not_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match="more than 4,194,304 bytes"):
        load_text(tmp_path / "sparse")
    (tmp_path / "full").write_text("x" * 100)
    assert len(load_text(tmp_path / "full", most_bytes=100)) == 100
    with pytest.raises(ValueError, match="more than 99 bytes"):
        load_text(tmp_path / "full", most_bytes=99)


def test_what_is_no_text_is_told_by_its_byte(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc\xff")
    with pytest.raises(ValueError, match="not UTF-8: byte 3 is no text"):
        load_text(tmp_path / "a")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 65 + "]" * 65, "more than 64 levels deep"),
        ('{"a":' * 100_000, "more than 64 levels deep"),
        ("[" + "1," * 200_000 + "1]", "more than 200,000 values"),
        ("1" * 5000, "integer string conversion"),
        ('"\\', "Unterminated string"),
        ("", "Expecting value"),
    ],
)
def test_json_beyond_the_limits_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_json(text)


def test_what_stands_in_a_string_is_no_depth() -> None:
    assert parse_json('["' + "[" * 1000 + '\\"[[[", 1]') == ["[" * 1000 + '"[[[', 1]
    assert parse_json("[" * 64 + "]" * 64)


def test_a_text_of_quotes_alone_is_gone_through_once() -> None:
    with pytest.raises(ValueError, match="Unterminated"):
        parse_json('"' + '\\"' * (MOST_BYTES // 2 - 1))
