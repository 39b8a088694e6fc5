"""Of every architecture as many LoRA parameters are counted as a trial's model has.

The architectures' own default configurations, of few layers, on the meta device; built by what
trials build with. Some of transformers' defaults build no model: they are passed over.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from autotune.errors import ConfigError
from autotune.question import model_reader
from autotune.question.architecture import check_architecture
from autotune.question.model_shape import ModelShape
from autotune.question.workload import Method, Workload, load_model_shape
from autotune.space.strategy import Strategy
from autotune.techniques.apply import apply_strategy
from autotune.worker.model import build_empty

pytestmark = pytest.mark.slow

TARGETS = ("all-linear", "attention", "mlp")
RANK = 8


def _is_decoder(model_type: str) -> bool:
    try:
        check_architecture({"model_type": model_type}, "")
    except ConfigError:
        return False
    return True


COUNTED = {
    *(
        "llama",
        "qwen2",
        "qwen3",
        "mistral",
        "gemma",
        "gemma2",
        "gemma3_text",
        "phi3",
        "gpt2",
        "opt",
    ),
    *(
        "gpt_neox",
        "falcon",
        "bloom",
        "mixtral",
        "qwen2_moe",
        "qwen3_moe",
        "deepseek_v3",
        "gpt_oss",
    ),
    *("glm4_moe", "qwen3_next", "olmoe", "ernie4_5_moe", "llama4_text", "jamba", "falcon_h1"),
}
"""Some whose defaults can be built; in transformers 5.24 these are 122 of 142."""


def _few_layers(model_type: str) -> Any:
    config_class = CONFIG_MAPPING[model_type]
    try:
        return config_class(num_hidden_layers=4)
    except Exception:
        return config_class()


def _shape(model_type: str, folder: Path) -> ModelShape:
    _few_layers(model_type).to_json_file(folder / "config.json", use_diff=False)
    return load_model_shape(str(folder))


def _num_built(shape: ModelShape, targets: str) -> int:
    with torch.device("meta"):
        model = build_empty(shape, torch.bfloat16, "eager")
        strategy = Strategy.from_dict({"lora_rank": RANK, "attention": "eager"})
        model = apply_strategy(model, strategy, method=Method.LORA, lora_targets=(targets,))
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_what_is_counted_is_built_for_every_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # That they run is not asked here, and takes longer than all else.
    monkeypatch.setattr(model_reader, "run_first_layers", lambda *_: None)
    counted_types, with_experts = set(), set()
    for model_type in sorted(filter(_is_decoder, CONFIG_MAPPING)):
        try:
            shape = _shape(model_type, tmp_path)
        except (ConfigError, TypeError, ValueError, AttributeError):
            continue
        counted_types.add(model_type)
        # Of dense models all linear layers are those of both groups.
        for targets in TARGETS if shape.num_experts > 1 else TARGETS[:1]:
            if shape.unknown_target((targets,)):
                with pytest.raises(ConfigError):
                    _num_built(shape, targets)
                continue
            counted = shape.num_lora_parameters(RANK, (targets,))
            assert counted == _num_built(shape, targets), (model_type, targets)
            if shape.num_expert_adapters(RANK, (targets,)):
                with_experts.add(model_type)
    assert counted_types >= COUNTED
    assert len(counted_types) > 100
    assert with_experts >= {"deepseek_v3", "glm4_moe", "qwen3_next"}
    assert "mixtral" not in with_experts


DEEPSEEK_V2_LITE: dict[str, Any] = {
    "model_type": "deepseek_v2",
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "topk_group": 1,
    "v_head_dim": 128,
    "vocab_size": 102400,
}


def test_deepseek_v2_lite_has_its_adapters_on_experts_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(DEEPSEEK_V2_LITE))
    shape = load_model_shape(str(tmp_path))
    workload = Workload(model=shape, seq_len=512, global_batch_size=8, method=Method.LORA)
    assert workload.num_trainable_parameters(16) == 358_116_352
    words = workload.adapters_in_words or ""
    assert "trains 358.1 million parameters, 351.0 million of them in adapters on the" in words
    attention = Workload(
        model=shape,
        seq_len=512,
        global_batch_size=8,
        method=Method.LORA,
        lora_targets=("attention",),
    )
    assert "the routed experts have no adapters" in (attention.adapters_in_words or "")
    assert attention.num_trainable_parameters(16) < 10_000_000


def test_a_part_of_what_stands_for_experts_is_refused_as_peft_refuses_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(DEEPSEEK_V2_LITE))
    shape = load_model_shape(str(tmp_path))
    words = shape.unknown_target(("gate_proj",)) or ""
    assert "puts no adapters on it without up_proj" in words
    with pytest.raises(ConfigError, match="without also targeting up_proj"):
        _num_built(shape, "gate_proj")
    down = shape.num_lora_parameters(RANK, ("down_proj",))
    assert (
        down == shape.num_expert_adapters(RANK, ("down_proj",)) == _num_built(shape, "down_proj")
    )
