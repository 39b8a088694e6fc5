"""Every architecture trains under every family of knobs, or the family is refused for it.

Real engines over two CPU ranks. The shapes differ where implementations break: tied embeddings,
grouped-query attention, biases on query, key and value, norms on heads, a large vocabulary, fused
projections, parallel residuals, experts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import RunTrial
from sample_study import SOFTWARE

from autotune.compatibility import conflict
from autotune.hardware import Hardware
from autotune.strategy import Strategy
from autotune.workload import Method, Workload, load_model_shape

pytestmark = pytest.mark.slow

_SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 512,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_GROUPED = {"num_key_value_heads": 2}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "qwen2": _GROUPED | {"tie_word_embeddings": True},
    "qwen3": _GROUPED | {"head_dim": 32, "tie_word_embeddings": True},
    "mistral": _GROUPED | {"sliding_window": 16},
    "gemma": {"num_key_value_heads": 1, "head_dim": 16, "vocab_size": 8192},
    "gpt_neox": {},
    "mixtral": _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
}
DENSE = [name for name in CONFIGS if name != "mixtral"]

FAMILIES: dict[str, dict[str, Any]] = {
    "ZeRO-1, layers": {"zero_stage": 1, "checkpoint_interval": 2, "loss_tiles": 2},
    "ZeRO-2, attention": {
        "zero_stage": 2,
        "checkpoint_interval": 1,
        "checkpoint_scope": "attention",
        "optimizer": "adamw_8bit",
    },
    "ZeRO-3, MLP": {
        "zero_stage": 3,
        "checkpoint_interval": 1,
        "offload_checkpoints": "cpu",
        "mlp_tiles": 2,
    },
    "groups": {
        "embedding_precision": "fp32",
        "norm_precision": "fp32",
        "lm_head_precision": "fp32",
    },
    "eager": {"attention": "eager", "checkpoint_interval": 1, "checkpoint_scope": "mlp"},
    "muon": {"zero_stage": 1, "optimizer": "muon"},
    "tensor": {"tensor_parallel_size": 2, "micro_batch_size": 4},
    "sequence": {"sequence_parallel_size": 2, "micro_batch_size": 4},
    "pipeline": {"pipeline_parallel_size": 2, "micro_batch_size": 2},
    "LoRA": {"zero_stage": 2, "checkpoint_interval": 1, "lora_rank": 4, "lora_targets": "mlp"},
    "LoRA, ZeRO-3": {"zero_stage": 3, "checkpoint_interval": 2, "lora_rank": 4, "lora_alpha": 4},
}

REFUSED: dict[tuple[str, str], str] = {
    ("mistral", "sequence"): "window",
    ("gemma", "tensor"): "num_key_value_heads 1",
}
"""Families that an architecture cannot take, with a part of the reason given."""


def workload(folder: Path, model_type: str, *, method: Method) -> Workload:
    """A small model of an architecture, from a folder as a user has it."""
    config = {"model_type": model_type} | _SMALL | CONFIGS[model_type]
    (folder / "config.json").write_text(json.dumps(config))
    return Workload(
        model=load_model_shape(str(folder)), seq_len=32, global_batch_size=8, method=method
    )


def _method(knobs: dict[str, Any]) -> Method:
    return Method.LORA if knobs.get("lora_rank") else Method.FULL


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("model_type", DENSE)
def test_architecture_trains_or_is_refused(
    run_trial: RunTrial, cpu_hardware: Hardware, tmp_path: Path, model_type: str, family: str
) -> None:
    knobs = FAMILIES[family]
    question = workload(tmp_path, model_type, method=_method(knobs))
    strategy = Strategy.from_dict({"micro_batch_size": 2} | knobs)
    words = conflict(strategy, question, cpu_hardware, SOFTWARE)
    expected = REFUSED.get((model_type, family))
    if expected is not None:
        assert words is not None
        assert expected in words
        return
    assert words is None
    outcome = run_trial(workload=question, **knobs)
    assert outcome.failure is None, outcome.failure
    assert outcome.measurement is not None
    assert outcome.measurement.num_parameters > question.model.num_parameters * 0.99


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_experts_train_under_every_zero_stage(
    run_trial: RunTrial, tmp_path: Path, zero_stage: int
) -> None:
    question = workload(tmp_path, "mixtral", method=Method.FULL)
    outcome = run_trial(workload=question, zero_stage=zero_stage)
    assert outcome.failure is None, outcome.failure
