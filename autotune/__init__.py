"""Automated strategy search for fine-tuning large language models with DeepSpeed.

The command line is the way in; from Python, two functions put an exported strategy on a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autotune.worker.apply import apply, create_optimizer

__all__ = ["apply", "create_optimizer"]


def __getattr__(name: str) -> Any:
    """Import torch only when a function that needs it is asked for."""
    if name in __all__:
        from autotune.worker import apply as module

        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
