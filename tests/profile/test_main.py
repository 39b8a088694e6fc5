"""How long one trace may take, and that the next one goes on."""

from __future__ import annotations

import time
from typing import Any

import pytest

from autotune.knob_values import Attention
from autotune.profile import Variant
from autotune.profile import __main__ as main
from autotune.question.workload import load_model_shape

SDPA = Variant(attention=Attention.SDPA, element_bytes=2)


def _spin(*_: object) -> Any:
    while True:
        pass


def test_a_trace_ends_by_processor_time_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "_MOST_S", 0.05)
    monkeypatch.setattr(main, "trace", _spin)

    said = main._answer(load_model_shape("tiny"), SDPA, 8)

    assert said == "tracing it took more than 0.05 s of CPU time"


def test_time_in_which_others_work_is_not_counted() -> None:
    with main._at_most(0.2):
        time.sleep(0.4)


def test_code_that_catches_everything_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "_AGAIN_S", 0.02)
    caught = []

    def stubborn() -> None:
        try:
            _spin()
        except Exception as error:
            caught.append(error)
            _spin()

    with pytest.raises(main._TooLongError), main._at_most(0.05):
        stubborn()
    assert len(caught) == 1
