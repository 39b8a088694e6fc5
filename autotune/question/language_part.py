"""The language part of a model of several: its configuration, and the parameters beside it.

Vision-language models have one (Gemma 3, Qwen2.5-VL, LLaVA): a decoder-only language model, to
which a vision tower and its projector hand embeddings in place of some tokens. Knows no sizes but
the parameters that it counts. Imports transformers and torch when it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autotune.errors import ConfigError
from autotune.question.model_config import complete_fields, refusal, transformers_config

__all__ = ["count_beside", "has_language_part", "language_fields", "language_type"]

_LIKE = {
    "glm4v_moe_text": "glm4_moe",
    "glm4v_text": "glm4",
    "qwen2_5_vl_text": "qwen2",
    "qwen2_vl_text": "qwen2",
    "qwen3_vl_moe_text": "qwen3_moe",
    "qwen3_vl_text": "qwen3",
}
"""Language models for which transformers 5.24 has no causal class, by those that have the same
layers and the same weights. They differ in how positions turn queries and keys: for images in
three parts, for text alone in one. `count_beside` refuses where the weights differ after all."""


def has_language_part(model_type: str) -> bool:
    """Whether an architecture takes images and text and answers in text."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def language_type(text_type: str) -> str | None:
    """The causal language model that stands for a text model; None where there is none."""
    from transformers.models.auto import modeling_auto

    stands_for = _LIKE.get(text_type, text_type)
    is_causal = stands_for in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    is_masked = stands_for in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return stands_for if is_causal and not is_masked else None


def language_fields(whole: Mapping[str, Any], label: str) -> dict[str, Any]:
    """The configuration of the language part alone, with its architecture's defaults.

    Args:
        whole: what `complete_fields` made of a configuration that has a language part.
        label: what messages call the file.

    Raises:
        ConfigError: transformers cannot read the part by itself.
    """
    text = transformers_config(whole).get_text_config().to_dict()
    fields = {name: value for name, value in text.items() if value is not None}
    fields["model_type"] = language_type(str(text["model_type"]))
    # Where both say it, the whole model goes by its own.
    fields["tie_word_embeddings"] = bool(
        whole.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    )
    return complete_fields(fields, label)


def count_beside(
    whole: Mapping[str, Any], fields: Mapping[str, Any], num_language: int, label: str
) -> int:
    """Parameters of a vision-language model that are not of its language part.

    Args:
        whole: what `complete_fields` made of its configuration.
        fields: what the file says.
        num_language: parameters of the language model that stands for the language part.
        label: what messages call the file.

    Raises:
        ConfigError: the model cannot be built, or its language part has other parameters.
    """
    try:
        num_own, num_beside = _count(whole)
    except ImportError as error:
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise ConfigError(
            f"{label}: the vision tower cannot be counted without a package: {reason}. Install it"
        ) from error
    except Exception as error:
        # Code of some hundred architectures runs here; whatever it raises is about this file.
        raise refusal(
            label,
            "no such model can be built",
            error,
            fields,
            lambda changed: _count(complete_fields(changed, label)),
        ) from error
    if num_own != num_language:
        raise ConfigError(
            f"{label}: the text model of model_type {whole['model_type']} has {num_own:,} "
            f"parameters, and the language model that would be trained in its place has "
            f"{num_language:,}; autotune cannot tune it"
        )
    return num_beside


def _count(whole: Mapping[str, Any]) -> tuple[int, int]:
    """Parameters of the language part with its output projection, and all others."""
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(
            transformers_config(whole), attn_implementation="eager", dtype=torch.bfloat16
        )
    model.tie_weights()
    own = {id(p): p.numel() for p in model.get_decoder().parameters()}
    own |= {id(p): p.numel() for p in model.get_output_embeddings().parameters()}
    beside = {id(p): p.numel() for p in model.parameters() if id(p) not in own}
    return sum(own.values()), sum(beside.values())
