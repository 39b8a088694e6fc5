"""Shapes are counted as the built models are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import ConfigError
from autotune.question.presets import PRESETS
from autotune.question.workload import Workload, load_model_shape

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "mistral": {"num_key_value_heads": 2},
    "gemma": {"num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True},
    "gpt_neox": {},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
}


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_preset_has_the_parameters_of_the_built_model(preset: str) -> None:
    assert _num_built(dict(PRESETS[preset].config)) == pytest.approx(
        load_model_shape(preset).num_parameters, rel=0.001
    )


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_folder_has_the_parameters_of_the_built_model(tmp_path: Path, model_type: str) -> None:
    config = {
        "model_type": model_type,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "vocab_size": 128,
    } | ARCHITECTURES[model_type]
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = load_model_shape(str(tmp_path))
    assert _num_built(config) == shape.num_parameters
    # A model that cannot be built is counted by published definitions, which leave out small norms
    # of queries and keys (Qwen3).
    counted = replace(shape, census=None).num_parameters
    assert counted == pytest.approx(shape.num_parameters, rel=0.01)


def _num_built(config: dict[str, Any]) -> int:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type = config.pop("model_type")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **config))
    model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("13b", "did you mean 13B"),
        ("does-not-exist", r"Give a preset \(tiny"),
        ("./nowhere", "no such preset or folder"),
    ],
)
def test_an_unknown_model_is_refused_with_a_hint(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_model_shape(name)


def test_remote_code_is_not_used_unless_trusted(tmp_path: Path) -> None:
    config = dict(PRESETS["tiny"].config) | {"auto_map": {"AutoConfig": "evil.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    assert load_model_shape(str(tmp_path)).source is None


def test_a_sequence_longer_than_the_model_takes_is_refused() -> None:
    with pytest.raises(ConfigError, match="--seq-len 4096"):
        Workload(model=load_model_shape("tiny"), seq_len=4096, global_batch_size=8)


def test_workload_survives_json() -> None:
    workload = Workload(model=load_model_shape("13B"), seq_len=64, global_batch_size=8)
    assert Workload.from_dict(json.loads(json.dumps(workload.to_dict()))) == workload
