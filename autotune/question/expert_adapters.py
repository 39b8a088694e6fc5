"""Adapters that PEFT puts on the experts of a mixture in place of linear layers.

PEFT holds some names of linear layers for those that experts had before transformers fused them
into one tensor, and adapts that tensor in their place, in all layers. It goes by names alone, so
that layers of the same name in attention, dense and shared MLPs lose their adapters. Source:
PEFT 0.21, `utils/transformers_weight_conversion.py`; `tests/techniques/test_adapter_counts.py`
holds it against what PEFT builds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ExpertAdapters", "find_expert_adapters"]


_HELD_NAMES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "mixtral": {"gate.weight": ("gate",), "gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)},
    "qwen2_moe": {
        "gate.weight": ("gate",),
        "gate_up_proj": ("gate_proj", "up_proj"),
        "down_proj": ("down_proj",),
    },
}
"""By the family of architectures, as transformers groups them for reading older checkpoints."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertAdapters:
    """What PEFT adapts in place of the linear layers of some names."""

    names: tuple[str, ...]
    """Names of linear layers. PEFT makes these adapters where all of them are targets, and
    refuses only a part of them."""
    inputs: int
    """Inputs of the adapters, added up over all experts of all layers; rank x (inputs + outputs)
    parameters are trained."""
    outputs: int

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ExpertAdapters:
        """Read back what `dataclasses.asdict` and JSON made of it."""
        return cls(**{**record, "names": tuple(record["names"])})


def find_expert_adapters(model: Any, names: Collection[str]) -> dict[str, ExpertAdapters]:
    """By the name of the parameter that is adapted; empty for nearly all architectures.

    Args:
        model: a causal model of transformers, on any device.
        names: of the linear layers of its decoder layers.
    """
    return {
        parameter: _adapters_of(model, parameter, held)
        for parameter, held in _held_names(model.config.model_type).items()
        if any(name in names for name in held)
    }


def _held_names(model_type: str) -> Mapping[str, tuple[str, ...]]:
    """What PEFT holds for names of experts, by the parameter that it adapts for them."""
    from transformers import conversion_mapping

    if conversion_mapping.get_checkpoint_conversion_mapping(model_type) is None:
        return {}
    # As PEFT has it. It is not asked itself, since it loads bitsandbytes, which takes a GPU.
    families = conversion_mapping._MODEL_TO_CONVERSION_PATTERN | {"mixtral": "mixtral"}
    return _HELD_NAMES.get(families.get(model_type, ""), {})


def _adapters_of(model: Any, parameter: str, names: tuple[str, ...]) -> ExpertAdapters:
    """Sides as PEFT's `ParamWrapper` has them: the rank counts once for each name and expert."""
    inputs = outputs = 0
    for path, weight in model.named_parameters():
        if not f".{path}".endswith(f".{parameter}") or weight.dim() not in (2, 3):
            continue
        num = len(names) * (weight.shape[0] if weight.dim() == 3 else 1)
        outputs += num * weight.shape[-2]
        inputs += num * weight.shape[-1]
    return ExpertAdapters(names=names, inputs=inputs, outputs=outputs)
