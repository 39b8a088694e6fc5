from __future__ import annotations

from pathlib import Path

import pytest

from autotune.knob_values import Attention
from autotune.profile import ModelProfile, Variant
from autotune.profile.store import read_profile, write_record
from autotune.profile.variant import digest

PROFILE = ModelProfile(
    num_tokens=2, layers=(), shared=1.0, head=2.0, loss=3.0, forward={}, backward={}
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "autotune" / "profiles"


def test_what_is_written_is_read_back(cache: Path) -> None:
    assert read_profile("a") is None

    write_record("a", PROFILE)

    assert read_profile("a") == PROFILE
    assert [path.name for path in cache.iterdir()] == ["a.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"layers": 1}'])
def test_a_broken_file_is_ignored_and_written_again(cache: Path, text: str) -> None:
    cache.mkdir(parents=True)
    (cache / "a.json").write_text(text)
    assert read_profile("a") is None

    write_record("a", PROFILE)

    assert read_profile("a") == PROFILE


def test_nothing_is_kept_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))

    write_record("a", PROFILE)

    assert read_profile("a") is None


def test_another_length_model_or_kernel_is_another_profile() -> None:
    plain = Variant(attention=Attention.SDPA, element_bytes=2)
    fused = Variant(attention=Attention.SDPA, element_bytes=2, fused_kernels=True)
    names = {
        digest({"a": 1}, 8, plain),
        digest({"a": 2}, 8, plain),
        digest({"a": 1}, 9, plain),
        digest({"a": 1}, 8, fused),
    }

    assert len(names) == 4
    assert digest({"a": 1}, 8, plain) in names


def test_a_model_under_another_name_is_the_same_profile() -> None:
    plain = Variant(attention=Attention.SDPA, element_bytes=2)
    here = {"a": 1, "_name_or_path": "here", "text_config": {"b": 2, "_name_or_path": "here"}}
    there = {"a": 1, "_name_or_path": "there", "text_config": {"b": 2, "_name_or_path": ""}}
    other = {"a": 1, "_name_or_path": "here", "text_config": {"b": 3, "_name_or_path": "here"}}

    assert digest(here, 8, plain) == digest(there, 8, plain)
    assert digest(here, 8, plain) != digest(other, 8, plain)
