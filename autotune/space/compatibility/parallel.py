"""Checks parallel degrees against the ranks, and the model's heads and layers."""

from __future__ import annotations

from autotune.machine.hardware import Hardware
from autotune.machine.software import Software
from autotune.question.workload import ModelShape, Workload
from autotune.space.strategy import Strategy

__all__ = [
    "PIPELINE_PARALLEL_MODEL_TYPES",
    "SEQUENCE_PARALLEL_MODEL_TYPES",
    "TENSOR_PARALLEL_MODEL_TYPES",
    "conflict",
]

TENSOR_PARALLEL_MODEL_TYPES = frozenset(
    ("gemma", "gpt_neox", "llama", "mistral", "opt", "phi", "qwen2", "qwen3")
)
"""Architectures that AutoTP divides with the same losses.

Others have layers that transformers' plan divides in ways AutoTP does not know (Mixtral's
experts), or no plan (GPT-2).
"""

SEQUENCE_PARALLEL_MODEL_TYPES = frozenset(
    ("gemma", "gpt_neox", "llama", "mistral", "mixtral", "opt", "phi", "qwen2", "qwen3")
)
"""Architectures with the same losses under Ulysses: `tests/techniques/test_sequence_parallel.py`.

Others may need the mask that it drops, or have attention of their own.
"""

PIPELINE_PARALLEL_MODEL_TYPES = frozenset(
    (
        "gemma",
        "gemma2",
        "gemma3_text",
        "gpt2",
        "gpt_neox",
        "llama",
        "mistral",
        "mixtral",
        "opt",
        "phi",
        "phi3",
        "qwen2",
        "qwen3",
    )
)
"""Architectures with the same losses in stages: `tests/techniques/test_pipeline.py`.

Others may hand their layers more than hidden states, such as embeddings for each layer.
"""


def conflict(
    strategy: Strategy, workload: Workload, hardware: Hardware, software: Software
) -> str | None:
    """Why the question does not allow these knobs, in words; None where it does."""
    ranks, model = hardware.num_devices, workload.model
    if ranks % strategy.model_parallel_size:
        return (
            f"tensor x pipeline x sequence = {strategy.model_parallel_size} does not divide "
            f"the {ranks} ranks"
        )
    return (
        _tensor_parallel(strategy, model)
        or _sequence_parallel(strategy, workload)
        or _pipeline_parallel(strategy, model)
    )


def _tensor_parallel(strategy: Strategy, model: ModelShape) -> str | None:
    degree = strategy.tensor_parallel_size
    if degree == 1:
        return None
    if model.model_type not in TENSOR_PARALLEL_MODEL_TYPES:
        return (
            f"tensor_parallel_size {degree}: DeepSpeed's AutoTP is not tested with "
            f"{model.model_type}, only with {', '.join(sorted(TENSOR_PARALLEL_MODEL_TYPES))}"
        )
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(model, name)
        if heads % degree:
            return f"tensor_parallel_size {degree} does not divide {name} {heads} of {model.name}"
    return None


def _sequence_parallel(strategy: Strategy, workload: Workload) -> str | None:
    degree, model = strategy.sequence_parallel_size, workload.model
    if degree == 1:
        return None
    knob = f"sequence_parallel_size {degree}"
    if model.model_type not in SEQUENCE_PARALLEL_MODEL_TYPES:
        return (
            f"{knob}: DeepSpeed's Ulysses is not tested with {model.model_type}, only with "
            f"{', '.join(sorted(SEQUENCE_PARALLEL_MODEL_TYPES))}"
        )
    if model.num_attention_heads % degree:
        return (
            f"{knob} does not divide num_attention_heads {model.num_attention_heads} of "
            f"{model.name}"
        )
    kv_heads = model.num_key_value_heads
    if kv_heads % degree and degree % kv_heads:
        return (
            f"{knob} neither divides num_key_value_heads {kv_heads} of {model.name} nor is a "
            "multiple of it"
        )
    if workload.seq_len % degree:
        return f"{knob} does not divide --seq-len {workload.seq_len}"
    window = model.config.get("sliding_window")
    if window and window < workload.seq_len and model.config.get("use_sliding_window", True):
        return (
            f"{knob} needs --seq-len up to the sliding window {window} of {model.name}, got "
            f"{workload.seq_len}: Ulysses drops the mask of the window"
        )
    return None


def _pipeline_parallel(strategy: Strategy, model: ModelShape) -> str | None:
    degree = strategy.pipeline_parallel_size
    if degree == 1:
        return None
    if model.model_type not in PIPELINE_PARALLEL_MODEL_TYPES:
        return (
            f"pipeline_parallel_size {degree}: stages are not tested with {model.model_type}, "
            f"only with {', '.join(sorted(PIPELINE_PARALLEL_MODEL_TYPES))}"
        )
    if degree > model.num_hidden_layers:
        return (
            f"pipeline_parallel_size {degree} is more than the {model.num_hidden_layers} layers "
            f"of {model.name}"
        )
    return None
