"""Implementations of attention that transformers lacks for some architectures."""

from __future__ import annotations

from autotune.knob_values import Attention

__all__ = ["ATTENTIONS_MISSING", "plain_attention"]

ATTENTIONS_MISSING: dict[Attention, frozenset[str]] = {
    Attention.EAGER: frozenset(),
    Attention.SDPA: frozenset(
        (
            "bloom",
            "gemma2",
            "gpt_neo",
            "gpt_neox_japanese",
            "gpt_oss",
            "granite_swa",
            "mimo_v2_flash",
            "mpt",
            "openai-gpt",
            "vaultgemma",
            "xglm",
        )
    ),
    Attention.FLASH: frozenset(
        ("bloom", "doge", "gpt_neox_japanese", "llama4_text", "mpt", "openai-gpt", "xglm")
    ),
}
"""Decoder-only architectures by what they lack: `_supports_sdpa` and `_supports_flash_attn` of
their classes in transformers 5.24, against which `tests/space/compatibility/test_attention.py`
holds them."""


def plain_attention(model_type: str) -> Attention:
    """What an architecture trains with where nothing is asked: its own default in transformers."""
    lacks_sdpa = model_type in ATTENTIONS_MISSING[Attention.SDPA]
    return Attention.EAGER if lacks_sdpa else Attention.SDPA
