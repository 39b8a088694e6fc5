"""The linear layers that have LoRA adapters, by the words of `--lora-targets`.

A target is `all-linear`, a group of layers (`attention`, `mlp`), the name of a layer, or
`experts`: the weights of routed experts, which are no linear layers. Does not know which layers
there are: that is told by `ModelShape`, and by the model itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from autotune.knob_values import ModuleGroup

__all__ = [
    "ADAPTER_GROUPS",
    "ALL_LINEAR",
    "EXPERTS",
    "can_have_adapter",
    "has_adapter",
    "read_targets",
]

ALL_LINEAR = "all-linear"
"""Every linear layer of the decoder blocks (PEFT's word)."""

EXPERTS = "experts"
"""The weights of routed experts, beside whatever linear layers are named."""

ADAPTER_GROUPS = (ModuleGroup.ATTENTION, ModuleGroup.MLP)
"""The groups that linear layers of a decoder block belong to."""

_REFUSED_BY_PEFT = {"falcon_h1": frozenset(("out_proj",)), "nemotron_h": frozenset(("out_proj",))}
"""Linear layers that PEFT 0.21 puts no adapters on, by `model_type`: a kernel of Mamba's reads
their weights itself (`peft/tuners/tuners_utils.py`)."""


def read_targets(text: str) -> tuple[str, ...]:
    """The targets of a text with commas between them."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def can_have_adapter(name: str, model_type: str) -> bool:
    """Whether PEFT puts adapters on the linear layers of this name at all."""
    return name not in _REFUSED_BY_PEFT.get(model_type, ())


def has_adapter(name: str, group: ModuleGroup, targets: Sequence[str]) -> bool:
    """Whether the targets name a linear layer, itself or by its group."""
    return ALL_LINEAR in targets or group in targets or name in targets
