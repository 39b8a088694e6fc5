"""Small models of many architectures, and their losses on one rank or several.

SGD at a learning rate of one, with DeepSpeed's clipping at a norm of one: a gradient that is wrong
by a factor shows in the losses, which AdamW would hide.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conftest import RunTrial

from autotune.trial import Measurement
from autotune.workload import Workload, load_model_shape

NUM_STEPS = 5

_SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 512,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {"num_key_value_heads": 2}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _GROUPED | {"tie_word_embeddings": False},
    "qwen2": _GROUPED | {"tie_word_embeddings": True},
    "qwen3": _GROUPED | {"head_dim": 16, "tie_word_embeddings": False},
    "mistral": _GROUPED | {"sliding_window": 32, "tie_word_embeddings": False},
    "gemma": _GROUPED | {"head_dim": 16, "tie_word_embeddings": True},
    "gpt_neox": {"tie_word_embeddings": False},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64, "dropout": 0.0},
    "phi": {"resid_pdrop": 0.0},
    "mixtral": _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
}
"""Tied and untied embeddings, grouped queries, biases, norms on heads, fused query-key-value."""


def workload(folder: Path, model_type: str, **changes: Any) -> Workload:
    """Four micro-batches of two samples on one data-parallel rank, 32 tokens a sample."""
    config = {"model_type": model_type, **_SMALL, **CONFIGS[model_type], **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return Workload(model=load_model_shape(str(folder)), seq_len=32, global_batch_size=8)


def train(run_trial: RunTrial, workload: Workload, num_ranks: int, **knobs: Any) -> Measurement:
    """Six optimizer steps in fp32."""
    sgd = {"precision": "fp32", "micro_batch_size": 2, "optimizer": "sgd", "lora_rank": 0}
    outcome = run_trial(
        workload=workload, num_ranks=num_ranks, learning_rate=1.0, timed_steps=5, **sgd | knobs
    )
    assert outcome.measurement is not None, outcome.failure
    assert len(outcome.measurement.losses) >= NUM_STEPS
    return outcome.measurement


_ONE_RANK: dict[str, Measurement] = {}


def train_on_one_rank(run_trial: RunTrial, workload: Workload, **knobs: Any) -> Measurement:
    """The same, on one rank; what was trained before is not trained again."""
    config = {key: value for key, value in workload.model.config.items() if key[0] != "_"}
    key = json.dumps([config, str(workload.method), knobs], sort_keys=True, default=str)
    if key not in _ONE_RANK:
        _ONE_RANK[key] = train(run_trial, workload, 1, **knobs)
    return _ONE_RANK[key]


def largest_difference(measured: Measurement, expected: Measurement) -> float:
    """Of the losses of the common steps, relative."""
    return max(_differences(measured, expected))


def _differences(measured: Measurement, expected: Measurement) -> Iterator[float]:
    for own, other in zip(measured.losses, expected.losses, strict=False):
        yield abs(own - other) / other
