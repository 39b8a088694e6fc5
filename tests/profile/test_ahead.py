"""Scripts that are traced aside."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from autotune.knob_values import Attention
from autotune.profile import Recipe, ScriptsAhead, Variant, ahead
from autotune.question.workload import load_model_shape

RECIPE = Recipe(variant=Variant(attention=Attention.SDPA, element_bytes=2))


def test_a_script_that_cannot_be_had_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Semaphore(0)

    def fail(*_: Any) -> str:
        asked.release()
        return "its code does not end"

    monkeypatch.setattr(ahead, "known_script_of", lambda *_: None)
    monkeypatch.setattr(ahead, "script_of", fail)
    scripts, shape = ScriptsAhead(), load_model_shape("tiny")
    said: list[str] = []
    for seq_len in (8, 16, 16):
        assert scripts(shape, RECIPE, seq_len) is None
    for _ in range(2):
        assert asked.acquire(timeout=10)
    while not said:
        said += scripts.failures()

    assert said == ["its code does not end"]
    assert not list(scripts.failures())
