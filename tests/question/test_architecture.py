"""Decoder-only causal language models are taken; every other architecture is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from autotune.errors import ConfigError
from autotune.question.architecture import check_architecture
from autotune.question.language_part import has_language_part

PLACE = "--model mine: config.json"


def _refusal(fields: dict[str, Any]) -> str | None:
    try:
        check_architecture(fields, PLACE)
    except ConfigError as error:
        refusal = str(error)
    else:
        return None
    assert refusal.startswith(PLACE)
    assert "\n" not in refusal
    return refusal


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        *((name, "is an encoder-decoder") for name in ("t5", "mt5", "bart", "pegasus", "whisper")),
        *((name, "is an encoder-decoder") for name in ("marian", "led", "prophetnet", "detr")),
        *((name, "is not causal") for name in ("bert", "roberta", "electra", "xlnet", "cpmant")),
        *((name, "is not causal") for name in ("xlm-roberta", "deberta-v2", "modernbert")),
        *(
            (name, "is not a causal")
            for name in ("vit", "dinov2", "wav2vec2", "segformer", "resnet")
        ),
        *((name, "is made of several") for name in ("clip", "siglip", "git", "mllama")),
        *((name, "is made of several") for name in ("musicgen", "kosmos-2", "voxtral")),
        ("trocr", "reads the hidden states of another model"),
    ],
)
def test_another_architecture_is_refused_by_name(model_type: str, words: str) -> None:
    refusal = _refusal({"model_type": model_type})
    assert refusal is not None
    assert words in refusal
    assert f"model_type {model_type}" in refusal


@pytest.mark.parametrize(
    "model_type",
    [
        *("llama", "qwen2", "qwen3", "mistral", "mixtral", "gemma", "gemma2", "gemma3_text"),
        *("gpt2", "gpt_neox", "opt", "phi3", "falcon", "mpt", "dbrx", "deepseek_v2", "bloom"),
        *("llama4_text", "jamba", "gpt_oss", "olmo2", "stablelm", "starcoder2", "exaone"),
        *(
            "gemma3",
            "qwen2_5_vl",
            "qwen2_vl",
            "llava",
            "mistral3",
            "llama4",
            "paligemma",
            "blip-2",
        ),
    ],
)
def test_decoders_are_taken(model_type: str) -> None:
    assert _refusal({"model_type": model_type}) is None


@pytest.mark.slow
def test_nothing_is_taken_that_transformers_has_another_head_for_alone() -> None:
    taken = {name for name in CONFIG_MAPPING if _refusal({"model_type": name}) is None}
    # Vision-language models are taken for their language part, which is causal itself.
    taken = {name for name in taken if not has_language_part(name)}
    assert len(taken) > 100
    assert taken <= set(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert not taken & set(modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES)
    assert not taken & set(modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
    assert not taken & set(modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)


@pytest.mark.parametrize(
    ("named", "words"),
    [
        (["LlamaForSequenceClassification"], "LlamaForSequenceClassification (model_type llama)"),
        (["LlamaForTokenClassification"], "is not a causal language model"),
        (
            ["LlamaModel"],
            "without the field `architectures` it is read as LlamaForCausalLM",
        ),
        ("LlamaForCausalLM", "architectures must be a list of names, got 'LlamaForCausalLM'"),
        ([None], "architectures must be a list of names"),
    ],
)
def test_a_decoder_with_another_head_is_refused(named: Any, words: str) -> None:
    assert words in (_refusal({"model_type": "llama", "architectures": named}) or "")


@pytest.mark.parametrize(
    "named", [None, [], ["LlamaForCausalLM"], ["LLaMAForCausalLM"], ["MistralForCausalLM"]]
)
def test_a_decoder_of_any_causal_class_is_taken(named: Any) -> None:
    assert _refusal({"model_type": "llama", "architectures": named}) is None
    assert _refusal({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}) is None


def test_an_encoder_decoder_is_known_by_its_field_too() -> None:
    fields = {"model_type": "llama", "is_encoder_decoder": True}
    assert "is an encoder-decoder" in (_refusal(fields) or "")


def test_what_tunes_any_other_model_is_said() -> None:
    for model_type in ("t5", "bert", "vit", "clip", "mllama"):
        assert "`autotune search … -- COMMAND`" in (_refusal({"model_type": model_type}) or "")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "names no model_type"),
        ({"model_type": None}, "names no model_type"),
        ({"model_type": ["llama"]}, "names no model_type"),
        ({"model_type": "lama"}, "knows no model_type 'lama'; did you mean llama?"),
        ({"model_type": "\x1b[31m\n"}, "knows no model_type '\\x1b[31m\\n'"),
        ({"model_type": "x" * 10_000}, "knows no model_type 'xxx"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "x.Y"}}, "--trust-remote-code"),
    ],
)
def test_an_unknown_architecture_is_refused(fields: dict[str, Any], words: str) -> None:
    refusal = _refusal(fields) or ""
    assert words in refusal
    assert len(refusal) < 300
