"""Small causal models of many architectures: models, folders with a config, workloads, strategies.

A test names an architecture and what it wants otherwise than here.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from autotune.question.workload import Method, Workload, load_model_shape
from autotune.space.compatibility.attention import plain_attention
from autotune.space.strategy import Strategy
from autotune.space.strategy_file import StrategyFile
from autotune.techniques.apply import apply_strategy

NUM_LAYERS = 4

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}

_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout")
WITH_DROPOUT: dict[str, Any] = dict.fromkeys(_DROPOUTS, 0.1)
_WITHOUT_DROPOUT = dict.fromkeys(_DROPOUTS, 0.0)

TIED: dict[str, Any] = {"tie_word_embeddings": True}
_GROUPED = {"num_key_value_heads": 2}
_WINDOW = {"sliding_window": 8}
"""Fewer tokens than any batch has."""

OVERRIDES: dict[str, dict[str, Any]] = {
    "biogpt": {},
    "bloom": {},
    "falcon": {},
    "gemma": _GROUPED | TIED,
    "gemma2": _GROUPED | TIED | _WINDOW,
    "gemma3_text": _GROUPED | TIED | _WINDOW,
    "gpt2": TIED | _WITHOUT_DROPOUT,
    "gpt_neo": {"attention_types": [[["global"], NUM_LAYERS]]},
    "gpt_neox": {},
    "gptj": {"rotary_dim": 4},
    "llama": _GROUPED,
    "mistral": _GROUPED | _WINDOW,
    "mixtral": _GROUPED | {"num_local_experts": 4},
    "opt": TIED | _WITHOUT_DROPOUT,
    "phi": {},
    "phi3": _GROUPED,
    "qwen2": _GROUPED | TIED,
    "qwen3": _GROUPED,
    "xglm": {},
}
"""Tied and untied embeddings, grouped queries, biases, norms on heads, fused query-key-value."""

_DERIVED = {
    "gemma": ("head_dim",),
    "gemma2": ("head_dim",),
    "gemma3_text": ("head_dim",),
    "qwen3": ("head_dim",),
    "gpt2": ("n_inner",),
    "gptj": ("n_inner",),
    "opt": ("ffn_dim", "word_embed_proj_dim"),
    "xglm": ("ffn_dim",),
}
"""What an architecture does not derive from `SMALL`'s sizes by itself."""

EVERY_FORM = (
    *("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gpt_neox", "gpt2", "phi"),
    *("falcon", "mixtral", "opt"),
)
"""One architecture of each form that implementations differ by."""


def small_config(model_type: str, **changes: Any) -> dict[str, Any]:
    """What stands in a model's config.json."""
    sizes = SMALL | changes
    derived = {
        "head_dim": sizes["hidden_size"] // sizes["num_attention_heads"],
        "n_inner": sizes["intermediate_size"],
        "ffn_dim": sizes["intermediate_size"],
        "word_embed_proj_dim": sizes["hidden_size"],
    }
    own = {name: derived[name] for name in _DERIVED.get(model_type, ())}
    return {"model_type": model_type} | SMALL | own | OVERRIDES[model_type] | changes


def build(model_type: str, **changes: Any) -> nn.Module:
    """A model in training mode, without dropout unless asked for, the same at every call."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(**small_config(model_type, **changes))
    attention = str(plain_attention(model_type))  # Dynamo traces no StrEnum.
    model: nn.Module = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return model.train()


def applied(model: nn.Module, *, method: Method = Method.FULL, **knobs: Any) -> nn.Module:
    """The model with the knobs put on it, as trials and exports do."""
    attention = {"attention": str(model.config._attn_implementation)}  # type: ignore[union-attr]
    strategy = Strategy.from_dict(attention | knobs)
    return apply_strategy(model, strategy, method=method, lora_targets=("all-linear",))


def write_config(folder: Path, model_type: str, **changes: Any) -> None:
    """Make the folder a model's, as a user has it, without weights."""
    (folder / "config.json").write_text(json.dumps(small_config(model_type, **changes)))


def small_workload(model_type: str, *, method: Method = Method.FULL, **changes: Any) -> Workload:
    """Four micro-batches of two samples for one rank, 32 tokens a sample."""
    with TemporaryDirectory() as folder:
        write_config(Path(folder), model_type, **changes)
        shape = load_model_shape(folder)
    return Workload(model=shape, seq_len=32, global_batch_size=8, method=method)


def write_strategy(folder: Path, strategy: Strategy, *, method: Method = Method.FULL) -> Path:
    """A strategy as an export has it."""
    exported = StrategyFile(
        model="mine",
        seq_len=32,
        global_batch_size=8,
        method=method,
        lora_targets=("all-linear",),
        learning_rate=1e-3,
        strategy=strategy,
    )
    path = folder / "strategy.yaml"
    path.write_text(exported.to_yaml())
    return path
