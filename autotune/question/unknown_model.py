"""The shape that stands for a model whose layers are not known: it has parameters and no sizes."""

from __future__ import annotations

from autotune.question.census import Census
from autotune.question.model_shape import ModelShape

__all__ = ["UNKNOWN", "unknown_model"]

UNKNOWN = "unknown"
"""The `model_type` of such a shape."""

_LONGEST = 2**20


def unknown_model(name: str, num_parameters: int) -> ModelShape:
    """A model of which only its name and its number of parameters are known."""
    census = Census(
        attention_linears={},
        mlp_linears={},
        attention=0,
        mlp=0,
        layers=num_parameters,
        embedding=0,
        lm_head=0,
        norm=0,
        largest=max(1, num_parameters),
        sides=1,
    )
    return ModelShape(
        name=name,
        model_type=UNKNOWN,
        hidden_size=1,
        intermediate_size=1,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=1,
        vocab_size=1,
        max_position_embeddings=_LONGEST,
        tie_word_embeddings=False,
        embedding_size=1,
        census=census,
    )
