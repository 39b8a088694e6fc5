"""Faster, loss-neutral kernels for the modules of a model."""

from __future__ import annotations

from typing import Any

from torch import nn

from autotune.errors import ConfigError
from autotune.knob_values import Attention, Experts
from autotune.question.census import has_implementations
from autotune.techniques.blocks import causal_model

__all__ = ["choose_attention", "choose_experts", "patch_kernels"]


def choose_attention(model: nn.Module, attention: Attention) -> None:
    """Have a model of transformers compute attention so.

    Raises:
        ConfigError: the architecture has no such attention, or decides when it is built.
    """
    # PEFT's wrapper hands this on to the model below it.
    wrapped: Any = model
    if wrapped.config._attn_implementation == attention:
        return
    try:
        wrapped.set_attn_implementation(str(attention))
    except (ValueError, ImportError) as error:
        lines = str(error).strip().splitlines()
        raise ConfigError(f"attention {attention}: {lines[0]}") from error
    if wrapped.config._attn_implementation != attention:
        raise ConfigError(
            f"attention {attention}: {type(model).__name__} takes it only when it is built; "
            f'load it with attn_implementation="{attention}"'
        )


def choose_experts(model: nn.Module, experts: Experts) -> None:
    """Have the routed experts of a model of transformers be computed so; others have none.

    Raises:
        ConfigError: this machine's PyTorch has no grouped products.
    """
    if not any(map(has_implementations, model.modules())):
        return
    wrapped: Any = model
    try:
        wrapped.set_experts_implementation(str(experts))
    except (ValueError, ImportError) as error:
        lines = str(error).strip().splitlines()
        raise ConfigError(f"experts_implementation {experts}: {lines[0]}") from error


def patch_kernels(model: nn.Module) -> None:
    """Liger's kernels on this instance, or on the model below PEFT's wrapper."""
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
    except ImportError as error:
        raise ConfigError("fused_kernels needs Liger: pip install 'autotune[liger]'") from error
    try:
        _apply_liger_kernel_to_instance(model=causal_model(model))
    except (AssertionError, AttributeError, ImportError, TypeError, ValueError) as error:
        # Liger goes through the modules of an architecture by the names that they had once.
        reason = " ".join(str(error).split()) or type(error).__name__
        name = type(model).__name__
        raise ConfigError(
            f"fused_kernels: the installed Liger does not fit this {name}: {reason}"
        ) from error
