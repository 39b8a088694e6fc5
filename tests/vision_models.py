"""Small vision-language models: folders with a config, and the models themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

_TEXT: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}

_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    # As many layers as the language part has: they must not be taken for it.
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}

_FIELDS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": {
            "model_type": "gemma3_text",
            **_TEXT,
            "head_dim": 8,
            "sliding_window": 8,
            "tie_word_embeddings": True,
        },
        "vision_config": {"model_type": "siglip_vision_model", **_VISION},
        "mm_tokens_per_image": 4,
        "image_token_index": 5,
    },
    "llava": {
        "text_config": {"model_type": "llama", **_TEXT},
        "vision_config": {"model_type": "clip_vision_model", **_VISION},
        "image_token_index": 5,
    },
    "qwen2_5_vl": {
        "text_config": {
            **_TEXT,
            "model_type": "qwen2_5_vl_text",
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
        },
        "vision_config": {"depth": 4, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 32},
        "image_token_id": 5,
        "video_token_id": 6,
    },
}


def vision_fields(model_type: str) -> dict[str, Any]:
    """What stands in such a model's config.json."""
    return {"model_type": model_type} | _FIELDS[model_type]


def write_vision_config(folder: Path, model_type: str) -> None:
    """Make the folder a model's, as a user has it, without weights."""
    (folder / "config.json").write_text(json.dumps(vision_fields(model_type)))


def build_vision(model_type: str) -> nn.Module:
    """A model in training mode, the same at every call."""
    torch.manual_seed(0)
    fields = dict(vision_fields(model_type))
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    model: nn.Module = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
    return model.train()
