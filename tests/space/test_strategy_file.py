from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from mutations import many, mutations, refusal

from autotune.errors import ConfigError
from autotune.knob_values import Optimizer
from autotune.question.workload import Method
from autotune.space.strategy import KNOBS, Strategy
from autotune.space.strategy_file import StrategyFile, read_strategy_file

EXPORTED = StrategyFile(
    model="1.1B",
    seq_len=1024,
    global_batch_size=64,
    method=Method.LORA,
    lora_targets=("q_proj", "v_proj"),
    learning_rate=1e-5,
    strategy=Strategy(zero_stage=2, lora_rank=8, optimizer=Optimizer.ADAMW_8BIT),
)


def edited(folder: Path, old: str, new: str) -> Path:
    text = EXPORTED.to_yaml()
    assert old in text
    path = folder / "strategy.yaml"
    path.write_text(text.replace(old, new))
    return path


def test_a_strategy_file_reads_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "strategy.yaml"
    path.write_text(EXPORTED.to_yaml())
    assert read_strategy_file(path) == EXPORTED


def test_every_knob_of_a_strategy_file_has_a_comment() -> None:
    lines = EXPORTED.to_yaml().splitlines()
    for knob in KNOBS:
        assert any(line.strip().startswith(f"{knob}:") and "  # " in line for line in lines)


@pytest.mark.parametrize("name", ["1e5", "null", "org/name: x", "/models/#1", "7B"])
def test_a_model_of_any_name_survives(tmp_path: Path, name: str) -> None:
    path = tmp_path / "strategy.yaml"
    path.write_text(EXPORTED.to_yaml().replace("model: 1.1B", f"model: '{name}'"))
    assert read_strategy_file(path).model == name


def test_a_knob_that_is_left_out_keeps_its_default(tmp_path: Path) -> None:
    path = edited(tmp_path, "  checkpoint_interval: 0", "  # ")
    assert read_strategy_file(path).strategy == EXPORTED.strategy


def test_a_misspelt_knob_suggests_the_nearest(tmp_path: Path) -> None:
    path = edited(tmp_path, "  micro_batch_size: 1 ", "  micro_batchsize: 1 ")
    with pytest.raises(ConfigError, match=r"strategy.yaml:\d+: .*did you mean micro_batch_size\?"):
        read_strategy_file(path)


def test_a_wrong_value_is_named_with_its_line(tmp_path: Path) -> None:
    path = edited(tmp_path, "zero_stage: 2", "zero_stage: 9")
    lines = path.read_text().splitlines()
    line = next(index for index, line in enumerate(lines, 1) if "zero_stage: 9" in line)
    with pytest.raises(ConfigError, match=f"strategy.yaml:{line}: zero_stage must be"):
        read_strategy_file(path)


def test_knobs_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    path = edited(tmp_path, "zero_stage: 2", "zero_stage: 3\n  master_weights: bf16")
    path.write_text(path.read_text().replace("  master_weights: fp32", "  # "))
    path.write_text(path.read_text().replace("precision: bf16", "precision: fp16"))
    with pytest.raises(ConfigError, match="master_weights bf16 needs precision bf16"):
        read_strategy_file(path)


def test_a_rank_without_lora_is_refused(tmp_path: Path) -> None:
    path = edited(tmp_path, "method: lora", "method: full")
    with pytest.raises(ConfigError, match="lora_rank 8 does not go with method full"):
        read_strategy_file(path)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = edited(tmp_path, "  seq_len: 1024\n", "")
    with pytest.raises(ConfigError, match="workload: the key `seq_len` is missing"):
        read_strategy_file(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.yaml: no such file"):
        read_strategy_file(tmp_path / "nowhere.yaml")


RECORD: dict[str, Any] = {
    "workload": {
        "model": "1.1B",
        "seq_len": 1024,
        "global_batch_size": 64,
        "method": "lora",
        "lora_targets": ["q_proj", "v_proj"],
    },
    "learning_rate": 1e-5,
    "strategy": EXPORTED.strategy.to_dict(),
}


@many()
@given(mutations(RECORD))
def test_any_strategy_file_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, record: object
) -> None:
    path = tmp_path_factory.getbasetemp() / "strategy.yaml"
    path.write_text(json.dumps(record))
    words = refusal(read_strategy_file, path)
    assert words is None or words.startswith(str(path))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("lora_rank", 10**30, "lora_rank must be at most 65,536"),
        ("micro_batch_size", 1e300, "micro_batch_size must be at most"),
        ("lora_targets", "q_proj$(id)", r"lora_targets 'q_proj\$\(id\)' has the character \$"),
    ],
)
def test_a_knob_beyond_all_models_is_refused(
    tmp_path: Path, key: str, value: object, words: str
) -> None:
    path = tmp_path / "strategy.yaml"
    path.write_text(json.dumps(RECORD | {"strategy": {"lora_rank": 8} | {key: value}}))
    with pytest.raises(ConfigError, match=words):
        read_strategy_file(path)
