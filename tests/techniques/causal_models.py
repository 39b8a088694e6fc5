"""Small causal models of transformers, one of each shape that implementations differ by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from autotune.compatibility.attention import plain_attention
from autotune.strategy import Strategy
from autotune.techniques.apply import apply_strategy
from autotune.workload import Method

torch.set_num_threads(1)  # In products as small as these, threads only wait for each other.

NUM_LAYERS = 4

TOKENS = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(0))

LABELS = TOKENS.clone()
"""With tokens that are not learned: a prompt, and all of what one of three tiles covers."""
LABELS[0, :9] = -100
LABELS[1, 6:12] = -100
LABELS[0, 6:12] = -100

_COMMON = {
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
_GROUPED = {"num_key_value_heads": 2}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "qwen2": _GROUPED | {"tie_word_embeddings": True},
    "qwen3": _GROUPED | {"head_dim": 8},
    "mistral": _GROUPED,
    "gemma": _GROUPED | {"head_dim": 8},
    "gemma2": _GROUPED | {"head_dim": 8, "sliding_window": 8},
    "gpt_neox": {},
    "gpt2": {},
    "phi": {},
    "falcon": {},
    "mixtral": _GROUPED | {"num_local_experts": 4},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0},
}
WITH_MLP = [name for name in CONFIGS if name != "opt"]

_OTHERS: dict[str, dict[str, Any]] = {
    "biogpt": {},
    "bloom": {},
    "xglm": {"d_model": 32, "ffn_dim": 64, "num_layers": NUM_LAYERS, "attention_heads": 4},
}


def build(model_type: str, **sizes: Any) -> nn.Module:
    """A model in training mode, without dropout unless asked for, the same at every call."""
    torch.manual_seed(0)
    plain = {
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "tie_word_embeddings": False,
    }
    config = AutoConfig.for_model(
        model_type, **_COMMON | plain | (CONFIGS | _OTHERS)[model_type] | sizes
    )
    attention = plain_attention(model_type)
    model: nn.Module = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return model.train()


def applied(model: nn.Module, *, method: Method = Method.FULL, **knobs: Any) -> nn.Module:
    """The model with the knobs put on it, as trials and exports do."""
    attention = {"attention": str(model.config._attn_implementation)}  # type: ignore[union-attr]
    strategy = Strategy.from_dict(attention | knobs)
    return apply_strategy(model, strategy, method=method, lora_targets=("all-linear",))


def train(
    model: nn.Module, labels: torch.Tensor = LABELS
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one batch, dropout drawn from the same seed."""
    model.zero_grad()
    torch.manual_seed(1)
    loss = model(input_ids=TOKENS, labels=labels).loss
    loss.backward()
    return loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def count_calls(modules: list[nn.Module], run: Callable[[], Any]) -> int:
    """How often the modules' own code begins to run, recomputation included."""
    calls: list[nn.Module] = []
    handles = [m.register_forward_pre_hook(lambda m, _: calls.append(m)) for m in modules]
    run()
    for handle in handles:
        handle.remove()
    return len(calls)
