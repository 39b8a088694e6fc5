"""Which linear layers have LoRA adapters, in the words of `--lora-targets` and `lora_targets`.

A target is `all-linear`, a group of layers (`attention`, `mlp`) or the name of a layer. Knows no
architecture: which layers there are is told by `ModelShape`, and by the model itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from autotune.knobs import ModuleGroup

__all__ = ["ADAPTER_GROUPS", "ALL_LINEAR", "has_adapter", "read_targets"]

ALL_LINEAR = "all-linear"
"""Every linear layer of the decoder blocks (PEFT's word)."""

ADAPTER_GROUPS = (ModuleGroup.ATTENTION, ModuleGroup.MLP)
"""The groups that linear layers of a decoder block belong to."""


def read_targets(text: str) -> tuple[str, ...]:
    """The targets of a text with commas between them."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def has_adapter(name: str, group: ModuleGroup, targets: Sequence[str]) -> bool:
    """Whether the targets name a linear layer, itself or by its group."""
    return ALL_LINEAR in targets or group in targets or name in targets
