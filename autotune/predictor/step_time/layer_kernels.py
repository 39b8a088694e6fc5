"""The kernels of a decoder layer beside its matrix products, and the bytes that they move.

Counted in transformers 5.24, operation by operation, and compared with the operations that torch
dispatches in forward of two small models of one and three layers (`tests/predictor/
step_time/test_layer_kernels.py`). Does not know how often a part is repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from autotune.predictor.memory.activations import experts_per_token
from autotune.question.workload import ModelShape

__all__ = ["LayerKernels", "layer_kernels"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerKernels:
    """Kernels of one layer in forward, and bytes they read and write for a token at 16 bit."""

    norm_bytes: float
    norm_kernels: float
    upcasts_norm: bool
    """Whether norms compute in fp32 in any precision, so that their bytes do not depend on it."""
    attention_bytes: float
    """Bytes of rotary embedding, norms of heads and scaling."""
    attention_kernels: float
    mlp_bytes: float
    """Bytes of the activation and of its gate."""
    mlp_kernels: float
    residual_bytes: float
    """Bytes of additions, and of dropout if the architecture has it."""
    residual_kernels: float
    backward: float
    """Bytes and kernels of backward, as a multiple of forward's."""
    host_ratio: float
    """Host time of a layer, as a multiple of a Llama layer's."""


_RMS = (36.0, 8.0)
"""RMSNorm of transformers, in bytes an element and kernels: conversion to fp32 6, square 8, mean
4, scaling 8, conversion to 16 bit 6, weight 4; eight kernels."""

_GEMMA_RMS = (40.0, 10.0)
"""RMSNorm of Gemma: the weight is converted to fp32, one is added, and the product is computed in
fp32."""

_NATIVE = (4.0, 1.0)
"""One kernel that reads and writes: torch's LayerNorm, or Liger's RMSNorm."""

_ROTARY = (20.0, 12.0)
"""Rotary embedding of queries and keys, in bytes an element: negating and joining halves 8, two
products 8, their sum 6."""

_PARTIAL_ROTARY = (15.0, 14.0)
"""Rotary embedding of a part of each head, which is split off and joined again."""

_FUSED_ROTARY = (4.0, 1.0)
_GATED = (10.0, 2.0)
_FUSED_GATED = (6.0, 1.0)
_PLAIN = (4.0, 1.0)

_NEW_GELU = (36.0, 8.0)
"""GELU by tanh as `activations.py` writes it out: eight kernels."""

_ADDITIONS = (12.0, 2.0)
_DROPOUT = (10.0, 2.0)
"""Dropout, twice in a layer: each reads, writes and keeps a mask."""

_BACKWARD = 2.1
_NATIVE_BACKWARD = 1.6

_HEAD_NORMS = ("qwen3", "qwen3_moe", "gemma3_text", "olmo2")
_FOUR_NORMS = ("gemma2", "gemma3_text")
_FP32_WEIGHTS = ("gemma", "gemma2", "gemma3_text", "olmo2")
_LAYER_NORMS = ("stablelm",)
"""Architectures with LayerNorm beside a gated MLP, and rotary embedding of a part of each head."""

_NEW_GELUS = ("gpt2", "gpt_neo", "gptj", "phi")
_DROPS = ("opt", "gpt2", "gpt_neo")
_HOST_RATIOS = {
    "qwen3": 1.23,
    "qwen3_moe": 1.23,
    "gpt_neox": 0.83,
    "opt": 0.68,
    "gpt2": 0.91,
    "phi": 0.96,
    "gemma3_text": 1.6,
    "olmo2": 1.31,
    "stablelm": 0.85,
}
"""Host time of a layer relative to a Llama's. Measured on one CPU core with small tensors, forward
and backward without DeepSpeed: a Llama took 0.55 ms a layer, and Mistral, Qwen2, Gemma and Phi-3
were within a tenth of it. The last three values are ratios of the operations that torch
dispatches, to which times are proportional: a Llama's layer has 227."""


@cache
def layer_kernels(shape: ModelShape, tensor: int, *, is_fused: bool) -> LayerKernels:
    """The kernels of one rank's part of a layer.

    Args:
        shape: the architecture.
        tensor: ranks over which matrix products are divided; norms and residuals are not.
        is_fused: whether the kernels are Liger's or inductor's.
    """
    gated, kind = shape.has_gated_mlp, shape.model_type
    h, width = shape.hidden_size, shape.intermediate_size * experts_per_token(shape) / tensor
    heads = (shape.num_attention_heads + shape.num_key_value_heads) / tensor * shape.head_dim
    norm, num_norms = _norm(shape, is_fused=is_fused), 4 if kind in _FOUR_NORMS else 2
    rotary = _rotary(shape, is_fused=is_fused)
    if gated:
        active = _FUSED_GATED if is_fused else _GATED
    else:
        active = _NEW_GELU if _has_new_gelu(shape) and not is_fused else _PLAIN
    dropped = _DROPOUT if kind in _DROPS else (0.0, 0.0)
    head_norm = norm if kind in _HEAD_NORMS else (0.0, 0.0)
    return LayerKernels(
        norm_bytes=num_norms * norm[0] * h,
        norm_kernels=num_norms * norm[1],
        upcasts_norm=norm in (_RMS, _GEMMA_RMS),
        attention_bytes=(rotary[0] + head_norm[0]) * heads,
        attention_kernels=rotary[1] + 2 * head_norm[1],
        mlp_bytes=active[0] * width,
        mlp_kernels=active[1],
        residual_bytes=(_ADDITIONS[0] + dropped[0]) * h,
        residual_kernels=_ADDITIONS[1] + dropped[1],
        backward=_NATIVE_BACKWARD if norm is _NATIVE else _BACKWARD,
        host_ratio=_HOST_RATIOS.get(kind, 1.0),
    )


def _rotary(shape: ModelShape, *, is_fused: bool) -> tuple[float, float]:
    if shape.model_type in ("opt", "gpt2", "gpt_neo", "bloom"):
        return 0.0, 0.0
    if is_fused:
        return _FUSED_ROTARY
    is_partial = not shape.has_gated_mlp or shape.model_type in _LAYER_NORMS
    return _PARTIAL_ROTARY if is_partial else _ROTARY


def _norm(shape: ModelShape, *, is_fused: bool) -> tuple[float, float]:
    if is_fused or not shape.has_gated_mlp or shape.model_type in _LAYER_NORMS:
        return _NATIVE
    return _GEMMA_RMS if shape.model_type in _FP32_WEIGHTS else _RMS


def _has_new_gelu(shape: ModelShape) -> bool:
    named = shape.config.get("activation_function") or shape.config.get("hidden_act")
    return shape.model_type in _NEW_GELUS and named in (None, "gelu_new")
