"""The names under which the presets' architectures are published, for files that name a model so.

Does not know what a preset is made of.
"""

from __future__ import annotations

from autotune.question.presets import PRESETS

__all__ = ["model_of", "published_name"]

_NAMES: dict[str, tuple[str, ...]] = {
    "125M": ("facebook/opt-125m",),
    "350M": ("facebook/opt-350m",),
    "1.1B": (
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        "TinyLlama/TinyLlama_v1.1",
        "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T",
        "TinyLlama/TinyLlama-1.1B-intermediate-step-1195k-token-2.5T",
    ),
    "3B": (
        "meta-llama/Llama-3.2-3B",
        "meta-llama/Llama-3.2-3B-Instruct",
        "NousResearch/Llama-3.2-3B",
        "unsloth/Llama-3.2-3B",
        "unsloth/Llama-3.2-3B-Instruct",
    ),
    "7B": (
        "meta-llama/Llama-2-7b-hf",
        "meta-llama/Llama-2-7b-chat-hf",
        "NousResearch/Llama-2-7b-hf",
        "NousResearch/Llama-2-7b-chat-hf",
    ),
    "13B": (
        "meta-llama/Llama-2-13b-hf",
        "meta-llama/Llama-2-13b-chat-hf",
        "NousResearch/Llama-2-13b-hf",
    ),
    "34B": (
        "codellama/CodeLlama-34b-hf",
        "codellama/CodeLlama-34b-Instruct-hf",
        "codellama/CodeLlama-34b-Python-hf",
    ),
    "70B": (
        "meta-llama/Llama-2-70b-hf",
        "meta-llama/Llama-2-70b-chat-hf",
        "NousResearch/Llama-2-70b-hf",
    ),
}
"""By preset, ids with its very sizes, the first of which an export writes. CodeLlama-34B-Python
differs in nothing that is counted."""

assert _NAMES.keys() <= PRESETS.keys()


def model_of(name: str) -> str:
    """The preset with a published model's very shape, or the name as it is."""
    wanted = name.lower()
    found = (preset for preset, ids in _NAMES.items() if wanted in map(str.lower, ids))
    return next(found, name)


def published_name(model: str) -> str:
    """The published id of a preset, or the name as it is."""
    return _NAMES[model][0] if model in _NAMES else model
