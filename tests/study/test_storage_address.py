"""URLs of storages: any path has one, and none shows a secret."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import URL, make_url

from autotune.errors import StorageError
from autotune.study.storage_address import (
    check_is_kept,
    check_works,
    file_url,
    shown,
    storage_errors,
)


@given(st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1))
def test_any_path_is_the_file_of_its_url(name: str) -> None:
    assert make_url(file_url(Path("/studies") / name)).database == str(Path("/studies") / name)


def test_a_path_that_is_no_text_has_no_url() -> None:
    with pytest.raises(StorageError, match=r"/\\xff: the path is not in UTF-8"):
        file_url(Path("/\udcff"))


def _misread(url: str) -> None:
    make_url(url)
    raise ValueError(url)


SECRETS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=20)


@given(secret=SECRETS, where=st.sampled_from(["password", "query"]))
def test_a_secret_that_is_encoded_is_never_shown(secret: str, where: str) -> None:
    query = {"password": secret, "sslmode": "require"} if where == "query" else {}
    password = secret if where == "password" else "*" * 40
    url = URL.create("postgresql", "me", password, "db.host", 5432, "studies", query)
    text = url.render_as_string(hide_password=False)
    assert secret not in shown(text).replace("sslmode=require", "")
    assert "db.host" in shown(text)
    with pytest.raises(StorageError) as caught, storage_errors(text):
        raise ValueError(f"cannot use {text}, nor {secret}")
    assert secret not in str(caught.value)
    assert caught.value.__cause__ is None


@given(secret=SECRETS)
def test_a_secret_that_is_not_encoded_is_not_shown_either(secret: str) -> None:
    for url in (f"postgresql://me:{secret}@db/studies", f"mysql://db/studies?password={secret}"):
        with pytest.raises(StorageError) as caught, storage_errors(url):
            _misread(url)
        # Its parts between the marks of a URL would be too much as well.
        assert secret not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite:////home/a@b/x?y.db", "sqlite:////home/a@b/x"),
        ("postgresql://user:x@host/studies", "postgresql://user:***@host/studies"),
        ("postgresql://user:a/b@host/studies", "postgresql://***"),
        ("postgresql://user:a@b@host/studies", "postgresql://***"),
        ("postgresql://user:a?b@host/studies", "postgresql://***"),
        (
            "postgresql://h/s?password=x&sslmode=require",
            "postgresql://h/s?password=***&sslmode=req",
        ),
        ("postgresql://h/s?sslpassword=x", "postgresql://h/s?sslpassword=***"),
        ("postgresql://h/s?options=x", "postgresql://h/s?options=***"),
        ("mysql://h/s;password=x", "mysql://h/s;password=***"),
        ("host=h password=x dbname=s", "host=h password=*** dbname=s"),
        ("user:x@host", "***"),
        ("nonsense", "nonsense"),
    ],
)
def test_what_is_shown_of_a_url(url: str, words: str) -> None:
    assert shown(url).startswith(words)


def _tree(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_storage_is_checked_without_a_word_written(tmp_path: Path) -> None:
    (tmp_path / "noise.db").write_bytes(b"years of work" * 400)
    (tmp_path / "empty.db").write_bytes(b"")
    with sqlite3.connect(tmp_path / "foreign.db") as database:
        database.execute("CREATE TABLE thesis (chapter TEXT)")
    database.close()
    before = _tree(tmp_path)
    for name in ("empty.db", "foreign.db", "new.db"):
        check_works(file_url(tmp_path / name))
        with pytest.raises(StorageError, match=r"cannot be used: (it has no|the file does not)"):
            check_is_kept(file_url(tmp_path / name))
    for name in ("noise.db", "nowhere/new.db"):
        with pytest.raises(StorageError, match="cannot be used"):
            check_works(file_url(tmp_path / name))
    assert _tree(tmp_path) == before
