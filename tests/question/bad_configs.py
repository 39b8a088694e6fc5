"""Real configurations made small, and ways to spoil them."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st
from transformers import AutoConfig

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}

_OWN: dict[str, dict[str, Any]] = {
    "deepseek_v2": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 16,
        "q_lora_rank": None,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16,
        "v_head_dim": 16,
        "n_group": 1,
        "topk_group": 1,
        "num_key_value_heads": 4,
    },
    "gemma3_text": {"head_dim": 16, "num_key_value_heads": 2, "query_pre_attn_scalar": 16},
    "gpt2": {},
    "gpt_neox": {},
    "llama": {"num_key_value_heads": 2},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "phi3": {"num_key_value_heads": 2},
    "qwen3": {"head_dim": 16, "num_key_value_heads": 2},
}


def real_config(model_type: str) -> dict[str, Any]:
    """All that a config.json of this architecture says where it is written by transformers."""
    config = AutoConfig.for_model(model_type, **SMALL | _OWN[model_type])
    fields: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    # Versions are written, not read.
    fields.pop("transformers_version", None)
    return fields


REAL = {model_type: real_config(model_type) for model_type in _OWN}

_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=8),
    st.sampled_from([0, -1, 1, 3, 7, 63, 10**6, 10**9, 2**31, 2**63, 10**18, 10**30]),
    st.integers(-10, 300),
    st.sampled_from([0.0, -1.5, 0.5, 1e300, float("nan"), float("inf"), float("-inf")]),
)

VALUES = st.one_of(
    _SCALARS,
    st.lists(_SCALARS, max_size=3),
    st.dictionaries(st.text(max_size=5), _SCALARS, max_size=3),
)
"""What somebody may write where something else belongs."""


@st.composite
def spoiled(draw: st.DrawFn) -> dict[str, Any]:
    """A real configuration with one to three fields removed, retyped or enlarged."""
    fields = dict(REAL[draw(st.sampled_from(sorted(REAL)))])
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(fields)))
        value = fields[name]
        change = draw(st.sampled_from(["remove", "retype", "enlarge"]))
        if change == "remove":
            del fields[name]
        elif change == "enlarge" and isinstance(value, int):
            fields[name] = value * draw(st.sampled_from([2, 3, -1, 10**3, 10**9, 10**18]))
        else:
            fields[name] = draw(VALUES)
        if not fields:
            break
    return fields
