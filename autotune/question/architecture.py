"""Refuses by name every architecture that is no decoder-only causal language model, nor has one.

By transformers' own tables, so that a new architecture needs no entry here. Knows no sizes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from autotune.errors import ConfigError
from autotune.question.config_file import shorten
from autotune.question.language_part import has_language_part, language_type

__all__ = ["check_architecture"]

_ASKED = "autotune supports decoder-only causal language models, such as Llama, Qwen or GPT-2"
_BY_SCRIPT = "; `autotune search … -- COMMAND` tunes your own training script of any model"

_PARTS_OF_LAYERS = ("attn_config", "ffn_config")
"""Configurations within a configuration that are of the layers of one model (MPT, DBRX)."""

_BOTH_SIDES = ("bert-generation", "cpmant", "xlnet")
"""Models with a language-model head, but no masked-language-model class, that are not causal."""

_NEEDS_ANOTHER = ("gemma4_assistant", "gemma4_unified_assistant", "trocr")
"""Decoders that read the hidden states of another model."""


def check_architecture(fields: Mapping[str, Any], label: str) -> None:
    """Refuse a model that is not, and has no, decoder-only causal language model of transformers.

    Args:
        fields: of a config.json.
        label: what messages call it.

    Raises:
        ConfigError: the architecture is another, or is unknown.
    """
    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise ConfigError(f"{label} names no model_type")
    named = fields.get("architectures")
    if named is not None and not _is_list_of_names(named):
        raise ConfigError(f"{label}: architectures must be a list of names, got {shorten(named)}")
    classes = _classes()
    if model_type not in classes:
        raise ConfigError(_unknown(model_type, fields, label, classes))
    words = f"{label}: {_in_words(model_type, named)}"
    reason = _why_not(model_type, fields, classes[model_type])
    if reason:
        raise ConfigError(f"{words} {reason}")
    if named and not any(map(_is_causal, named)) and not has_language_part(model_type):
        raise ConfigError(
            f"{words} is not a causal language model. {_ASKED}; without the field `architectures` "
            f"it is read as {_causal_class(model_type)}"
        )


def _classes() -> Mapping[str, Any]:
    """Every configuration class of transformers, by its `model_type`."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    found: Mapping[str, Any] = CONFIG_MAPPING
    return found


def _is_list_of_names(named: Any) -> bool:
    return isinstance(named, list) and all(isinstance(name, str) for name in named)


def _in_words(model_type: str, named: list[str] | None) -> str:
    if named and named[0].isidentifier():
        return f"{named[0]} (model_type {model_type})"
    return f"model_type {model_type}"


def _unknown(
    model_type: str, fields: Mapping[str, Any], label: str, known: Collection[str]
) -> str:
    import difflib

    import transformers

    words = (
        f"{label}: transformers {transformers.__version__} knows no model_type "
        f"{shorten(model_type)}"
    )
    if isinstance(fields.get("auto_map"), Mapping):
        return f"{words}: only `search --trust-remote-code` runs its own Python code"
    near = difflib.get_close_matches(model_type, list(known), n=1, cutoff=0.6)
    return words + (f"; did you mean {near[0]}?" if near else "")


def _why_not(model_type: str, fields: Mapping[str, Any], config_class: Any) -> str | None:
    """Why an architecture is none of those that autotune tunes, in words."""
    from transformers.models.auto import modeling_auto

    parts = [part for part in config_class.sub_configs if part not in _PARTS_OF_LAYERS]
    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    masked = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    asked = f"{_ASKED}{_BY_SCRIPT}"
    if fields.get("is_encoder_decoder", getattr(config_class, "is_encoder_decoder", False)):
        return f"is an encoder-decoder. {asked}"
    if parts:
        return _why_no_language_part(model_type, fields, config_class, parts)
    if model_type in _NEEDS_ANOTHER:
        return f"reads the hidden states of another model. {asked}"
    if model_type in masked or model_type in _BOTH_SIDES:
        return f"is not causal: its tokens attend to later tokens. {asked}"
    if model_type not in causal:
        return f"is not a causal language model. {asked}"
    return None


def _why_no_language_part(
    model_type: str, fields: Mapping[str, Any], config_class: Any, parts: list[str]
) -> str | None:
    """Why none of several models is a causal language model that could be tuned."""
    words = f"is made of several models ({', '.join(parts)})"
    if not has_language_part(model_type):
        return f"{words}. {_ASKED}{_BY_SCRIPT}"
    text_type = _text_type(fields, config_class)
    if text_type == model_type:
        return f"{words}, none of which is a language model by itself. {_ASKED}{_BY_SCRIPT}"
    if text_type is None or language_type(text_type) is not None:
        # What cannot be read is refused by who reads it, with the field.
        return None
    return f"{words}, of which {text_type} is not a causal language model. {_ASKED}{_BY_SCRIPT}"


def _text_type(fields: Mapping[str, Any], config_class: Any) -> str | None:
    """The `model_type` of the text model; None where transformers cannot read the fields."""
    text = fields.get("text_config")
    named = text.get("model_type") if isinstance(text, Mapping) else None
    if isinstance(named, str):
        return named
    try:
        return str(config_class.from_dict(dict(fields)).get_text_config().model_type)
    except Exception:
        return None


def _causal_class(model_type: str) -> str | None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    found = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    return found if isinstance(found, str) or found is None else str(found[0])


def _is_causal(name: str) -> bool:
    """Whether a class is a causal language model, by its name as transformers forms them."""
    return name.lower().endswith(("forcausallm", "lmheadmodel"))
