"""Architectures train under families of knobs, or the family is refused for it.

Real engines over two CPU ranks. The shapes differ where implementations break: tied embeddings,
grouped-query attention, biases on query, key and value, norms on heads, a large vocabulary, fused
projections, parallel residuals, experts.
"""

from __future__ import annotations

from typing import Any

import pytest
from conftest import RunTrial
from sample_study import SOFTWARE
from small_models import small_workload

from autotune.machine.hardware import Hardware
from autotune.question.workload import Method, Workload
from autotune.space.compatibility import conflict
from autotune.space.strategy import Strategy

pytestmark = pytest.mark.slow

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 512}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": True},
    "mistral": {},
    "gemma": {"num_key_value_heads": 1, "vocab_size": 8192},
    "gpt_neox": {},
    "mixtral": {},
}
DENSE = [name for name in ARCHITECTURES if name != "mixtral"]

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

ON_SOME: dict[str, tuple[str, ...]] = {
    # Seconds of compiling for each shape of a matrix; shapes differ with a fused projection.
    # test_optimizers compiles llama's.
    "muon": ("gpt_neox",),
    # Slow to gather, adapter by adapter; what differs are the names and the norms on heads.
    "LoRA, ZeRO-3": ("qwen2", "qwen3", "gpt_neox"),
    "ZeRO-3, MLP": ("llama", "qwen3", "gemma", "gpt_neox"),
}
"""Architectures of the families that take seconds each; the others are tried on all."""

PAIRS = [
    (model_type, family)
    for model_type in DENSE
    for family in FAMILIES
    if model_type in ON_SOME.get(family, DENSE)
]

REFUSED: dict[tuple[str, str], str] = {
    ("mistral", "sequence"): "window",
    ("gemma", "tensor"): "num_key_value_heads 1",
}
"""Families that an architecture cannot take, with a part of the reason given."""


def _workload(model_type: str, *, method: Method = Method.FULL) -> Workload:
    return small_workload(model_type, method=method, **SIZES | ARCHITECTURES[model_type])


def _method(knobs: dict[str, Any]) -> Method:
    return Method.LORA if knobs.get("lora_rank") else Method.FULL


@pytest.mark.parametrize(("model_type", "family"), PAIRS)
def test_architecture_trains_or_is_refused(
    run_trial: RunTrial, cpu_hardware: Hardware, model_type: str, family: str
) -> None:
    knobs = FAMILIES[family]
    question = _workload(model_type, method=_method(knobs))
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
def test_experts_train_under_every_zero_stage(run_trial: RunTrial, zero_stage: int) -> None:
    question = _workload("mixtral")
    outcome = run_trial(workload=question, zero_stage=zero_stage)
    assert outcome.failure is None, outcome.failure
