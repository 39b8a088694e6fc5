"""The language part of vision-language models is read, and what is beside it is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from vision_models import write_vision_config

from autotune.errors import ConfigError
from autotune.question.model_reader import Vision, load_model_shape
from autotune.question.workload import Workload

GEMMA3_4B: dict[str, Any] = {
    "model_type": "gemma3",
    "architectures": ["Gemma3ForConditionalGeneration"],
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "sliding_window": 1024,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "image_size": 896,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "vision_use_head": False,
    },
}

QWEN_3B_FLAT: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "vision_config": {"depth": 32, "out_hidden_size": 2048},
}
"""As such files were published before the text model had a section of its own."""


def _write(folder: Path, fields: dict[str, Any]) -> str:
    (folder / "config.json").write_text(json.dumps(fields))
    return str(folder)


def _real_number(fields: dict[str, Any]) -> int:
    config = CONFIG_MAPPING[fields["model_type"]].from_dict(dict(fields))
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("fields", "language"),
    [
        pytest.param(GEMMA3_4B, "gemma3_text", id="gemma3-4b"),
        pytest.param(QWEN_3B_FLAT, "qwen2", id="qwen2.5-vl-3b"),
        *(
            pytest.param({"model_type": name}, language, id=name)
            for name, language in {
                "qwen2_5_vl": "qwen2",
                "qwen2_vl": "qwen2",
                "qwen3_vl": "qwen3",
                "qwen3_vl_moe": "qwen3_moe",
                "llava": "llama",
                "llava_next": "llama",
                "mistral3": "mistral",
                "llama4": "llama4_text",
                "paligemma": "gemma",
                "internvl": "qwen2",
                "smolvlm": "llama",
                "glm4v": "glm4",
                "glm4v_moe": "glm4_moe",
            }.items()
        ),
    ],
)
def test_parameters_are_those_of_the_real_model(
    fields: dict[str, Any], language: str, tmp_path: Path
) -> None:
    shape = load_model_shape(_write(tmp_path, fields))
    assert shape.model_type == language
    assert shape.whole_type == fields["model_type"]
    assert shape.tower_parameters > 0
    assert shape.num_held_parameters == _real_number(fields)


def test_without_a_tower_the_language_part_is_a_model_of_its_own(tmp_path: Path) -> None:
    write_vision_config(tmp_path, "gemma3")
    frozen = load_model_shape(str(tmp_path))
    absent = load_model_shape(str(tmp_path), vision=Vision.ABSENT)
    assert frozen.num_parameters == absent.num_parameters == absent.num_held_parameters
    assert frozen.num_held_parameters > frozen.num_parameters


def test_what_is_trained_of_such_a_model_is_said(tmp_path: Path) -> None:
    write_vision_config(tmp_path, "qwen2_5_vl")
    for vision, words in (
        (Vision.FROZEN, "its weights count in memory, its activations do not"),
        (Vision.ABSENT, "left away (--vision absent)"),
    ):
        shape = load_model_shape(str(tmp_path), vision=vision)
        [remark] = Workload(model=shape, seq_len=16, global_batch_size=2).remarks
        assert "language part of qwen2_5_vl on text alone" in remark
        assert "no images are measured" in remark
        assert words in remark


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "mllama"}, "mllama_text_model is not a causal language model"),
        ({"model_type": "llava", "text_config": {"model_type": "bert"}}, "of which bert is no"),
        ({"model_type": "gemma3", "text_config": {"hidden_size": 0}}, "text_config"),
        ({"model_type": "gemma3", "text_config": 5}, "text_config"),
        ({"model_type": "gemma3", "text_config": {"num_hidden_layers": "x"}}, "num_hidden_layers"),
        ({"model_type": "gemma3", "vision_config": {"hidden_size": -5}}, "config.json"),
        ({"model_type": "qwen2_5_vl", "vision_config": []}, "vision_config"),
    ],
)
def test_a_wrong_configuration_is_refused_in_one_line(
    fields: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_model_shape(_write(tmp_path, fields))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
