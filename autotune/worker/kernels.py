"""Faster kernels for the modules of a model, loss-neutral all of them."""

from __future__ import annotations

from torch import nn

from autotune.errors import ConfigError

__all__ = ["patch_kernels"]


def patch_kernels(model: nn.Module) -> None:
    """Liger's kernels on this instance; must come before PEFT wraps it, which Liger refuses."""
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
    except ImportError as error:
        raise ConfigError("fused_kernels needs Liger: pip install 'autotune[liger]'") from error
    _apply_liger_kernel_to_instance(model=model)
