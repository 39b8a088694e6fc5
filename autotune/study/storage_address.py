"""The URL of a study's storage: made, checked, and shown without its secrets.

Does not know what is kept there.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from sqlalchemy import URL, create_engine, inspect, make_url
from sqlalchemy.exc import ArgumentError

from autotune.errors import ConfigError, StorageError

__all__ = ["check_is_kept", "check_works", "file_url", "shown", "storage_errors"]

_HIDDEN = "***"

_PUBLIC = frozenset(
    (
        "application_name",
        "charset",
        "connect_timeout",
        "dbname",
        "host",
        "mode",
        "port",
        "sslmode",
        "target_session_attrs",
        "timeout",
        "uri",
        "user",
    )
)
"""What a query may hold that is no secret; everything else is taken for one."""

_NAMED_SECRET = re.compile(
    r"(?i)(\w*(?:pass|pwd|secret|token|key|credential)\w*\s*[=:]\s*)[^&;\s]+"
)


_MOST_OF_A_WORD = 3
"""A secret of so many characters may be a part of any word; only as a whole one is it told."""


def file_url(path: Path) -> str:
    """The URL of a SQLite file, whatever characters its path has.

    Raises:
        StorageError: the path is no text, which SQLite cannot open.
    """
    try:
        return URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)
    except UnicodeEncodeError:
        shown_path = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise StorageError(f"{shown_path}: the path is not in UTF-8; choose another") from None


def shown(url: str) -> str:
    """A URL as it may be printed: no password, no value of a query that may be one.

    What cannot be read as a URL is cut after its scheme, since nobody knows where in it a
    password lies.
    """
    scheme, separator, _ = url.partition("://")
    if not separator and "@" in url:
        return _HIDDEN
    if not separator:
        return _NAMED_SECRET.sub(rf"\1{_HIDDEN}", url)
    parsed = _parsed(url)
    if parsed is None:
        return f"{scheme}{separator}{_HIDDEN}"
    query = "&".join(
        f"{key}={value if key in _PUBLIC else _HIDDEN}"
        for key, value in sorted(parsed.query.items())
    )
    text = unquote(parsed.set(query={}).render_as_string(hide_password=True))
    return _NAMED_SECRET.sub(rf"\1{_HIDDEN}", text) + (f"?{query}" if query else "")


def _without_secrets(words: str, url: str) -> str:
    """What a library said about a URL, as it may be printed."""
    parsed = _parsed(url)
    if parsed is None and ("://" in url or "@" in url):
        return (
            "it is not a URL such as postgresql://USER:PASSWORD@HOST/DATABASE; "
            "write @ : / ? # % in a password as %40 %3A %2F %3F %23 %25"
        )
    words = words.replace(url, shown(url))
    for secret in _secrets(url, parsed):
        if len(secret) > _MOST_OF_A_WORD:
            words = words.replace(secret, _HIDDEN)
        else:
            words = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", _HIDDEN, words)
    return words


def _secrets(url: str, parsed: URL | None) -> list[str]:
    """All that must not be printed, in every way to write it, the longest first."""
    if parsed is None:
        return [found[0].split("=")[-1].strip() for found in _NAMED_SECRET.finditer(url)]
    authority, _, query = url.partition("://")[2].partition("?")
    values = [str(parsed.password or ""), authority.partition("@")[0].partition(":")[2]]
    values += [
        value
        for key, _, value in (each.partition("=") for each in query.split("&"))
        if key not in _PUBLIC
    ]
    plain = {form for value in values for form in (value, unquote(value), unquote_plus(value))}
    written = plain | {quote(value) for value in plain} | {quote_plus(value) for value in plain}
    return sorted(written - {""}, key=len, reverse=True)


def _parsed(url: str) -> URL | None:
    """A URL in its parts; None where a password may lie elsewhere than SQLAlchemy reads it.

    With an @, a slash or a question mark in it that are not encoded, it ends within another part.
    """
    authority, *rest = re.split(r"[/?]", url.partition("://")[2], maxsplit=1)
    if authority.count("@") > 1 or (authority and "@" in "".join(rest)):
        return None
    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        return None


@contextlib.contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """One clear line for whatever the storage's libraries raise.

    Raises:
        StorageError: instead of their own errors, and not from them: they may hold the password.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (StorageError, ConfigError):
        raise
    except Exception as error:  # each database driver has exceptions of its own
        lines = str(getattr(error, "orig", None) or error).strip().splitlines()
        reason = _without_secrets(lines[0] if lines else type(error).__name__, url)
        raise StorageError(
            f"the study storage {shown(url)} cannot be used: {reason}; "
            "choose another --storage, or another folder with --out"
        ) from None


def check_works(url: str) -> None:
    """Connect to a storage that a study may be kept in, and write nothing.

    Raises:
        StorageError: it cannot be used.
    """
    with storage_errors(url):
        path = _file_of(url)
        if path is None or path.exists():
            _tables_of(url)
        elif not path.parent.is_dir():
            # To connect would make the file.
            raise FileNotFoundError(f"there is no folder {path.parent}")
        elif not os.access(path.parent, os.W_OK | os.X_OK):
            raise PermissionError(f"the folder {path.parent} cannot be written")


_HINT = "give the --storage that the search was given"


def check_is_kept(url: str) -> None:
    """Refuse a storage in which nobody has kept a study: to open it would make tables there.

    Raises:
        StorageError: there is no such storage, or no study was ever kept in it.
    """
    path = _file_of(url)
    if path is not None and not path.exists():
        raise StorageError(
            f"the study storage {shown(url)} cannot be used: the file does not exist; {_HINT}"
        )
    if not _tables_of(url) >= _TABLES:
        raise StorageError(
            f"the study storage {shown(url)} cannot be used: it has no study; {_HINT}"
        )


_TABLES = frozenset(("studies", "trials", "version_info", "alembic_version"))
"""Some of the tables that Optuna creates in every storage."""


def _tables_of(url: str) -> set[str]:
    engine = create_engine(url)
    try:
        return set(inspect(engine).get_table_names())
    finally:
        engine.dispose()


def _file_of(url: str) -> Path | None:
    """The file of a SQLite storage; None for another database, or one in memory."""
    parsed = make_url(url)
    name = parsed.database
    if parsed.get_backend_name() != "sqlite" or not name or name.startswith((":", "file:")):
        return None
    return Path(name)
