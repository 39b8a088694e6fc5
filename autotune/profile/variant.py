"""The key of a profile: one model, trained in one way, at one length.

Of a profile only what changes the tensors of a layer: the rest is put together from its parts. A
script is of all that changes what is held when. Does not know how anything is traced.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from autotune.knob_values import Attention, CheckpointScope, Experts

__all__ = ["Recipe", "Variant", "digest"]

_FORMAT = 1
"""Version of the stored format; profiles stored under another number are not read."""

_PACKAGES = ("torch", "transformers", "peft", "liger-kernel")
"""Packages whose code is traced, so that profiles depend on their versions."""


_NAMES = ("_name_or_path", "name_or_path")
"""Fields of a configuration that name its folder, and do not change a profile."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One way to train."""

    attention: Attention
    element_bytes: int
    """2 for bf16 and fp16, which keep the same; 4 for fp32."""
    fused_kernels: bool = False
    lora_rank: int = 0
    """0 for full fine-tuning."""
    lora_targets: tuple[str, ...] = ()
    experts: Experts = Experts.GROUPED_MM


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A variant, and the techniques that change what is held when."""

    variant: Variant
    checkpoint_interval: int = 0
    checkpoint_scope: CheckpointScope = CheckpointScope.LAYER
    mlp_tiles: int = 1
    loss_tiles: int = 1
    sequence_parallel_size: int = 1
    gathers_weights: bool = False
    """Whether weights come and go with the modules that need them, as ZeRO-3 has it; checkpoints
    are then re-entrant."""

    @property
    def checkpoint_span(self) -> int:
        """Layers that are recomputed together."""
        return max(1, self.checkpoint_interval)


def digest(config: Mapping[str, Any], seq_len: int, variant: Variant | Recipe) -> str:
    """Digest of everything that a profile depends on; the model's folder is not part of it."""
    told = {
        "format": _FORMAT,
        "config": _without_names(config),
        "seq_len": seq_len,
        "of": type(variant).__name__,
        "variant": asdict(variant),
        "versions": {name: _version(name) for name in _PACKAGES},
    }
    text = json.dumps(told, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _without_names(value: Any) -> Any:
    """A configuration as it is under any name: transformers adds what it was read from."""
    if isinstance(value, Mapping):
        return {key: _without_names(one) for key, one in value.items() if key not in _NAMES}
    if isinstance(value, list | tuple):
        return [_without_names(one) for one in value]
    return value


@cache
def _version(name: str) -> str:
    """Of an installed package; read once, as the metadata's file is parsed for each answer."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
