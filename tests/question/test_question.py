from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from sample_study import HARDWARE, LAPTOP, LORA_WORKLOAD, QUESTION, WORKLOAD

from autotune.errors import ConfigError
from autotune.question.question import Question
from autotune.question.workload import load_model_shape


def test_a_question_reads_back_through_json() -> None:
    assert Question.from_dict(json.loads(json.dumps(QUESTION.to_dict()))) == QUESTION


def test_the_memory_limit_is_the_device_less_the_headroom() -> None:
    assert replace(QUESTION, headroom=0.25).memory_limit_bytes == 60 * 2**30


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"seed": 7}, ["--seed 7 there, 0 here"]),
        ({"headroom": 0.1}, ["--headroom 0.1 there, 0.05 here"]),
        ({"hardware": LAPTOP}, ["hardware 2 x cpu there, 2 x H100-80GB here"]),
        ({"workload": replace(WORKLOAD, seq_len=512)}, ["--seq-len 512 there, 1024 here"]),
        (
            {"workload": LORA_WORKLOAD},
            ["--method lora there, full here", "--lora-rank 8 there, 16 here"],
        ),
        (
            {"workload": replace(WORKLOAD, model=load_model_shape("3B"))},
            ["--model 3B there, 1.1B here"],
        ),
        ({"space_text": "edited"}, ["--space default there, default here (or edited)"]),
    ],
)
def test_a_difference_is_told_by_its_flag(other: dict[str, Any], words: list[str]) -> None:
    assert QUESTION.differences(replace(QUESTION, **other)) == words


def test_host_memory_that_moves_from_boot_to_boot_is_no_difference() -> None:
    rebooted = replace(HARDWARE, host_memory_bytes=HARDWARE.host_memory_bytes - 4096)
    assert QUESTION.differences(replace(QUESTION, hardware=rebooted)) == []


@pytest.mark.parametrize("record", [{}, {"workload": {}}, QUESTION.to_dict() | {"answer": 42}])
def test_what_is_no_question_is_refused(record: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="no question of autotune"):
        Question.from_dict(record)
