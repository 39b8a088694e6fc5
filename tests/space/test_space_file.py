from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import autotune_here
from hypothesis import given
from mutations import many, mutations, refusal
from ruamel.yaml import YAML
from sample_study import HARDWARE, LAPTOP, LORA_WORKLOAD, SOFTWARE, WORKLOAD
from tiers import slow_but

from autotune.errors import ConfigError
from autotune.knob_values import LossClass
from autotune.machine.hardware import Hardware
from autotune.question.census import take_census
from autotune.question.empty_model import build_empty_model
from autotune.question.lengths import Lengths
from autotune.question.workload import Workload
from autotune.space.search_space import SearchSpace
from autotune.space.space_file import bundled_spaces, load_search_space, parse_search_space
from autotune.space.strategy import KNOBS, LOSS_CLASSES

BUNDLED = sorted(bundled_spaces())


def load(folder: Path, text: str, workload: Workload = WORKLOAD) -> SearchSpace:
    path = folder / "my.yaml"
    path.write_text(text)
    return load_search_space(str(path), workload, HARDWARE, SOFTWARE)


def test_the_three_spaces_of_the_readme_are_bundled() -> None:
    assert {"default", "memory", "full"} <= set(BUNDLED)


@pytest.mark.parametrize("name", BUNDLED)
@pytest.mark.parametrize("workload", [WORKLOAD, LORA_WORKLOAD], ids=["full", "lora"])
@pytest.mark.parametrize("hardware", slow_but([HARDWARE], [HARDWARE, LAPTOP]), ids=str)
def test_every_bundled_space_has_strategies(
    name: str, workload: Workload, hardware: Hardware
) -> None:
    space = load_search_space(name, workload, hardware, SOFTWARE)
    assert sum(1 for _ in space.strategies()) > 10


@pytest.mark.parametrize("name", BUNDLED)
def test_every_key_of_a_bundled_space_is_documented(name: str) -> None:
    text = bundled_spaces()[name].read_text()
    lines = text.splitlines()
    assert lines[0].startswith("# ")
    for knob in YAML(typ="rt").load(text)["knobs"]:
        above = lines[lines.index(f"  {knob}:") - 1]
        assert above.startswith("  # "), f"{knob} has no comment"


def test_the_default_space_moves_only_neutral_knobs() -> None:
    space = load_search_space("default", WORKLOAD, HARDWARE, SOFTWARE)
    assert {LOSS_CLASSES[knob.name] for knob in space.knobs} == {LossClass.NEUTRAL}


MIXTURE = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_local_experts": 2,
}


def test_the_full_space_moves_every_knob() -> None:
    census = take_census(build_empty_model({"model_type": "mixtral", **MIXTURE}), 1)
    model = replace(LORA_WORKLOAD.model, census=census)
    mixture = replace(LORA_WORKLOAD, model=model, lengths=Lengths.of([100, 200]))
    space = load_search_space("full", mixture, HARDWARE, SOFTWARE)
    assert tuple(knob.name for knob in space.knobs) == KNOBS


def test_a_model_without_routed_experts_does_not_move_their_knob() -> None:
    dense = replace(LORA_WORKLOAD, lengths=Lengths.of([100, 200]))
    space = load_search_space("full", dense, HARDWARE, SOFTWARE)
    assert set(KNOBS) - {knob.name for knob in space.knobs} == {"experts_implementation"}


def test_samples_of_one_length_do_not_move_how_they_join() -> None:
    space = load_search_space("default", LORA_WORKLOAD, HARDWARE, SOFTWARE)
    assert "batching" not in {knob.name for knob in space.knobs}


def test_a_list_is_short_for_values(tmp_path: Path) -> None:
    short = load(tmp_path, "knobs: {zero_stage: [0, 1]}")
    assert short.knobs == load(tmp_path, "knobs: {zero_stage: {values: [0, 1]}}").knobs


def test_a_lone_value_is_short_for_a_list(tmp_path: Path) -> None:
    space = load(
        tmp_path,
        "knobs:\n  zero_stage: [0, 1]\n"
        "  offload_optimizer: {values: [none, cpu], when: {zero_stage: 1, device: cuda}}",
    )
    assert space.knobs[1].when == {"zero_stage": (1,), "device": ("cuda",)}


def test_knobs_come_in_the_order_of_the_strategy_whatever_the_file_says(tmp_path: Path) -> None:
    space = load(tmp_path, "knobs:\n  micro_batch_size: [1]\n  zero_stage: [0]\n")
    assert [knob.name for knob in space.knobs] == ["zero_stage", "micro_batch_size"]


def test_a_value_named_twice_is_tried_once(tmp_path: Path) -> None:
    assert load(tmp_path, "knobs: {micro_batch_size: [4, 4, 8]}").knobs[0].values == (4, 8)


def test_lora_rank_is_left_out_of_full_fine_tuning(tmp_path: Path) -> None:
    text = "knobs: {zero_stage: [0, 1], lora_rank: [0, 4]}"
    assert [knob.name for knob in load(tmp_path, text).knobs] == ["zero_stage"]
    assert load(tmp_path, text, LORA_WORKLOAD).knobs[1].values == (4,)


def test_a_number_in_exponent_notation_is_a_number(tmp_path: Path) -> None:
    assert load(tmp_path, "knobs: {micro_batch_size: [1e1]}").knobs[0].values == (10,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: the file must be a mapping with keys of question, knobs; got None"),
        ("knob: {}", ":1: unknown key 'knob'; did you mean knobs?"),
        ("question: why\n", ":1: the key `knobs` is missing"),
        ("question: why\nknobs: {}\n", ":2: `knobs:` names no knob"),
        ("knobs:\n  zero_stge: [1]\n", ":2: knobs: there is no knob 'zero_stge'; did you mean "),
        (
            "knobs:\n  zero_stage:\n    valeus: [1]\n",
            ":3: knobs.zero_stage: unknown key 'valeus'; did you mean values?",
        ),
        (
            "knobs:\n  zero_stage: {when: {device: cpu}}\n",
            ":2: knobs.zero_stage: the key `values`",
        ),
        ("knobs:\n  zero_stage: []\n", ":2: knobs.zero_stage.values: needs at least one value"),
        ("knobs:\n  zero_stage:\n", ":2: knobs.zero_stage must be a mapping with keys of values"),
        ("knobs:\n  zero_stage: [1,\n    4]\n", ":3: zero_stage must be 0, 1, 2 or 3, got 4"),
        (
            "knobs:\n  micro_batch_size:\n    values: [1, '5e8']\n",
            ":3: micro_batch_size takes whole numbers, got '5e8', which is text: "
            "write it without quotes",
        ),
        (
            "knobs:\n  micro_batch_size: [.inf]",
            ":2: micro_batch_size takes whole numbers, got inf",
        ),
        (
            "knobs:\n  micro_batch_size: [.nan]",
            ":2: micro_batch_size takes whole numbers, got nan",
        ),
        ("knobs:\n  fused_kernels: [yes]", ":2: fused_kernels takes true or false, got 'yes'"),
        (
            "knobs:\n  optimizer: [adam]",
            ":2: optimizer takes one of adamw, adamw_8bit, paged_adamw_8bit, ",
        ),
        (
            "knobs:\n  offload_optimizer:\n    values: [cpu]\n    when:\n      zero_stge: 1\n",
            ":5: knobs.offload_optimizer.when: `when` cannot ask for 'zero_stge'; did you mean "
            "zero_stage?",
        ),
        (
            "knobs:\n  zero_stage:\n    values: [1]\n    when: {optimizer: adamw}\n",
            ":4: knobs.zero_stage.when: `when` cannot ask for 'optimizer'; known are device, "
            "method",
        ),
        (
            "knobs:\n  zero_stage:\n    values: [1]\n    when: {device: gpu}\n",
            ":4: knobs.zero_stage.when.device.0: input should be 'cpu' or 'cuda', got 'gpu'",
        ),
        ("knobs:\n  1: [2]\n", ":2: knobs.1: keys should be strings"),
        ("knobs:\n  zero_stage: [1\n", "not valid YAML"),
        ("knobs: {}\nknobs: {}\n", ":2: not valid YAML: found duplicate key"),
        ("question: 2026-13-45\n", "not valid YAML: month must be in 1..12"),
    ],
)
def test_a_mistake_is_named_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load(tmp_path, text)
    assert str(tmp_path / "my.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_space_suggests_the_nearest_bundled_one() -> None:
    with pytest.raises(ConfigError, match=r"--space defualt: .* did you mean default\?"):
        load_search_space("defualt", WORKLOAD, HARDWARE, SOFTWARE)


def test_a_folder_in_the_place_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--space .*: cannot be read"):
        load_search_space(str(tmp_path), WORKLOAD, HARDWARE, SOFTWARE)


SPACE: dict[str, Any] = {
    "question": "what is fast?",
    "knobs": {
        "zero_stage": [1, 2, 3],
        "micro_batch_size": {"values": [1, 2, 4], "when": {"zero_stage": [1, 2]}},
        "checkpoint_scope": {"values": ["layer", "mlp"], "when": {"device": "cuda"}},
        "offload_ratio": [0.5, 1],
        "fused_kernels": [True, False],
        "lora_targets": ["", "attention"],
    },
}


@many()
@given(mutations(SPACE))
def test_any_space_is_read_or_refused_in_one_line(record: object) -> None:
    words = refusal(parse_search_space, json.dumps(record), "x.yaml", WORKLOAD, HARDWARE, SOFTWARE)
    assert words is None or words.startswith("x.yaml:")


@many(8)
@given(mutations(SPACE, most=1))
def test_any_space_ends_a_plan_by_the_rule(
    tmp_path_factory: pytest.TempPathFactory, record: object
) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "x.yaml").write_text(json.dumps(record))
    plan = ("plan", "--model", "tiny", "--hardware", "2xH100", "--quick", "--json")
    ran = autotune_here(*plan, "--space", "x.yaml", folder=folder)
    assert ran.returncode in (0, 1, 2)
    if ran.returncode == 2:
        assert len(ran.stderr.splitlines()) == 1
        assert ran.stdout == ""
