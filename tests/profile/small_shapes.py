"""Shapes of small models of many architectures, as `load_model_shape` reads them from folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from autotune.question.workload import ModelShape, load_model_shape

COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 512,
    "max_position_embeddings": 512,
}


def small_shape(folder: Path, model_type: str, **fields: Any) -> ModelShape:
    """A model of three layers, or as `fields` say."""
    config = {"model_type": model_type} | COMMON | fields
    (folder / "config.json").write_text(json.dumps(config))
    return load_model_shape(str(folder))
