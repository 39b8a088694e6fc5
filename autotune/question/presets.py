"""The model presets: public architectures by their size, as Hugging Face configurations.

Does not know what is trained or how; no weights, nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["PRESETS", "Preset"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """One row of the table of presets."""

    architecture: str
    """The public model whose shape this is."""
    config: Mapping[str, Any]
    """Its configuration, in Hugging Face's keys."""


def _llama(
    architecture: str,
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    kv_heads: int,
    vocab: int,
    positions: int,
    tied: bool = False,
) -> Preset:
    return Preset(
        architecture=architecture,
        config={
            "model_type": "llama",
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "vocab_size": vocab,
            "max_position_embeddings": positions,
            "tie_word_embeddings": tied,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    )


def _opt(
    architecture: str,
    hidden: int,
    layers: int,
    heads: int,
    embedding: int,
    norm_before: bool = True,
) -> Preset:
    return Preset(
        architecture=architecture,
        config={
            "model_type": "opt",
            "hidden_size": hidden,
            "ffn_dim": 4 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "word_embed_proj_dim": embedding,
            "do_layer_norm_before": norm_before,
            "vocab_size": 50272,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
            "dropout": 0.0,
        },
    )


PRESETS: dict[str, Preset] = {
    "tiny": _llama("a Llama of 0.5 million parameters", 96, 256, 4, 4, 2, 512, 512),
    "125M": _opt("OPT-125M", 768, 12, 12, 768),
    "350M": _opt("OPT-350M", 1024, 24, 16, 512, norm_before=False),
    "1.1B": _llama("TinyLlama-1.1B", 2048, 5632, 22, 32, 4, 32000, 2048),
    "3B": _llama("Llama-3.2-3B", 3072, 8192, 28, 24, 8, 128256, 131072, tied=True),
    "7B": _llama("Llama-2-7B", 4096, 11008, 32, 32, 32, 32000, 4096),
    "13B": _llama("Llama-2-13B", 5120, 13824, 40, 40, 40, 32000, 4096),
    "34B": _llama("CodeLlama-34B", 8192, 22016, 48, 64, 8, 32000, 16384),
    "70B": _llama("Llama-2-70B", 8192, 28672, 80, 64, 8, 32000, 4096),
    "175B": _opt("OPT-175B", 12288, 96, 96, 12288),
}
