"""Automated strategy search for fine-tuning large language models with DeepSpeed.

The command line is the way in; from Python, a few functions put an exported strategy on a model.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autotune.techniques.apply import apply, create_optimizer
    from autotune.techniques.collation import collator, pack
    from autotune.techniques.pipeline import pipeline
    from autotune.techniques.sequence_parallel import shard_batch

__all__ = ["apply", "collator", "create_optimizer", "pack", "pipeline", "shard_batch"]

_HOMES = {
    "collator": "collation",
    "pack": "collation",
    "pipeline": "pipeline",
    "shard_batch": "sequence_parallel",
}
"""The module of `autotune.techniques` that a function lives in, where that is not `apply`."""


def __getattr__(name: str) -> Any:
    """Import torch only when a function that needs it is asked for."""
    if name in __all__:
        module = importlib.import_module(f"autotune.techniques.{_HOMES.get(name, 'apply')}")
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
