from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from mutations import many, mutations, refusal
from sample_study import HARDWARE, LAPTOP, LORA_WORKLOAD, QUESTION, WORKLOAD

from autotune.errors import ConfigError
from autotune.question.question import Question
from autotune.question.workload import load_model_shape


def test_a_question_reads_back_through_json() -> None:
    assert Question.from_dict(json.loads(json.dumps(QUESTION.to_dict()))) == QUESTION


def test_every_field_of_a_question_is_read_back() -> None:
    odd = replace(QUESTION, headroom=0.11, host_headroom=0.12, seed=7)
    assert Question.from_dict(json.loads(json.dumps(odd.to_dict()))) == odd
    assert odd.to_dict().keys() == {field.name for field in fields(Question)}


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
    with pytest.raises(ConfigError, match="not a question of autotune"):
        Question.from_dict(record)


RECORD: dict[str, Any] = json.loads(json.dumps(QUESTION.to_dict()))


def _with(place: str, value: object) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(json.dumps(RECORD))
    *outer, key = place.split(".")
    inner = record
    for part in outer:
        inner = inner[part]
    inner[key] = value
    return record


@many()
@given(mutations(RECORD))
def test_any_record_is_a_question_or_refused_in_one_line(record: Any) -> None:
    words = refusal(Question.from_dict, record)
    assert words is None or "not a question of autotune" in words or "--" in words


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("hardware.num_devices", "2", "hardware.num_devices: input should be a valid integer"),
        ("hardware.num_devices", 0, "hardware.num_devices must be more than 0"),
        ("hardware.num_nodes", 3, "2 devices are not spread evenly over 3 nodes"),
        ("hardware.flops_per_s", float("nan"), "hardware.flops_per_s"),
        ("hardware.device_memory_bytes", 10**30, "hardware.device_memory_bytes"),
        ("hardware.device_type", "tpu", "hardware.device_type: input should be 'cpu' or 'cuda'"),
        ("hardware.device_kind", "X\ncommand\n#", "the device kind 'X"),
        ("hardware.nvme_path", "/a\x1b[31m", "the NVMe path '/a"),
        ("hardware.rates", {"memory_bytes_per_s": -1.0}, "memory_bytes_per_s must be more than 0"),
        ("workload.model.num_hidden_layers", 10**9, "num_hidden_layers must be .* at most 16,384"),
        ("workload.model.hidden_size", None, "workload.model.hidden_size"),
        ("workload.method", 1, "workload.method"),
        ("workload.lora_targets", "q_proj", "workload.lora_targets"),
        ("headroom", 1, "headroom: input should be less than 1"),
        ("seed", -1, "seed: input should be greater than or equal to 0"),
        ("space_name", "a\nb", "space_name 'a.*' has the character U\\+000A"),
        ("answer", 42, "answer: extra inputs are not permitted"),
    ],
)
def test_a_part_that_is_wrong_is_named(place: str, value: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Question.from_dict(_with(place, value))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name", ["a`id`", "<img src=x>", "$(id)", "a;b", "[red]", "a\nb", "\u202e"]
)
def test_a_model_whose_name_steers_a_script_or_terminal_is_refused(name: str) -> None:
    model = replace(WORKLOAD.model, name=name)
    with pytest.raises(ConfigError, match=r"^--model '"):
        replace(QUESTION, workload=replace(WORKLOAD, model=model))


def test_a_question_of_an_earlier_version_is_read() -> None:
    record = _with("seed", 0)
    del record["hardware"]["compute_capability"], record["hardware"]["rates"], record["headroom"]
    assert Question.from_dict(record) == QUESTION
