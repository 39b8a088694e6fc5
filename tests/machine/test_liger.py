"""The architectures that Liger patches are asked of the Liger that is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from autotune.machine.liger import liger_model_types

SOURCE = '''\
"""Patches."""

OTHERS = {
    "not_this": 1,
}

MODEL_TYPE_TO_APPLY_LIGER_FN: dict[str, object] = {
    "llama": apply_llama,
    # Mixtures.
    'qwen3_moe': apply_qwen3_moe,
    "qwen2.5-vl": lambda **options: {"inner": options},
}


def apply(model_type: str) -> None:
    """Uses {"braces": 1}."""
'''


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    liger_model_types.cache_clear()
    yield
    liger_model_types.cache_clear()


def _install(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str | None) -> None:
    package = folder / "liger_kernel"
    (package / "transformers").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('needs Triton')\n")
    if source is not None:
        (package / "transformers" / "monkey_patch.py").write_text(source)
    monkeypatch.delitem(sys.modules, "liger_kernel", raising=False)
    monkeypatch.syspath_prepend(str(folder))


def test_the_table_is_read_without_importing_liger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path, monkeypatch, SOURCE)
    assert liger_model_types() == {"llama", "qwen3_moe", "qwen2.5-vl"}
    assert "liger_kernel" not in sys.modules


@pytest.mark.parametrize("source", [None, "", "MODEL_TYPE_TO_APPLY_LIGER_FN = {}\n"])
def test_another_liger_does_not_say(
    source: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path, monkeypatch, source)
    assert liger_model_types() is None
