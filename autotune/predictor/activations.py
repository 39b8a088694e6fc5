"""What forward keeps for backward: bytes of one token in a decoder layer and in the head.

Counted tensor by tensor from the layers of transformers 5 (`models/llama/modeling_llama.py`,
`models/opt/modeling_opt.py`) and Liger's (`ops/rms_norm.py`, `ops/swiglu.py`), in the manner of
Korthikanti et al., Reducing Activation Recomputation in Large Transformer Models (arXiv
2205.05198), section 4.1. Does not know ZeRO or optimizers.
"""

from __future__ import annotations

from dataclasses import dataclass

from autotune.workload import ALL_LINEAR, ModelShape

__all__ = ["TokenBytes", "experts_per_token", "token_bytes"]

_FP32 = 4

_LOSS_BYTES_PER_LOGIT = 12
"""Cross-entropy in fp32, in backward: log-probabilities, their gradient, that of the logits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenBytes:
    """Bytes of one token."""

    layer_input: int
    """The input of a decoder layer: what checkpointing keeps."""
    layer: int
    """All that one decoder layer saves for backward."""
    layer_backward: int
    """Gradients that are alive within one layer's backward at its widest."""
    head: int
    """Saved by the final norm and the output projection."""
    loss: int
    """Alive only around the loss: logits and what is computed from them."""


def token_bytes(
    shape: ModelShape,
    *,
    element_bytes: int,
    has_fused_kernels: bool,
    lora_rank: int,
    lora_targets: tuple[str, ...],
) -> TokenBytes:
    """What one token holds.

    Args:
        shape: the architecture.
        element_bytes: of one activation: 2 at 16 bit, 4 at fp32.
        has_fused_kernels: whether Liger's kernels replace those of transformers.
        lora_rank: rank of the adapters; 0 trains all weights.
        lora_targets: the linear layers that have adapters.
    """
    e, h, f = element_bytes, shape.hidden_size, shape.intermediate_size
    targets = _Targets(shape, lora_rank, lora_targets)
    norm = _norm_bytes(shape, e, has_fused_kernels, is_trained=lora_rank == 0)
    layer = (
        2 * norm
        + e * h * (targets.keep_attention_input + targets.keep_mlp_input)
        + _attention_bytes(shape, e)
        + _mlp_bytes(shape, e, has_fused_kernels, targets.keep_down_input)
        + e * lora_rank * targets.num_adapters
    )
    # LoRA freezes the output projection, which then needs no input for its backward.
    head = norm + e * h * (lora_rank == 0)
    if has_fused_kernels:
        # Liger's fused linear cross-entropy (`ops/fused_linear_cross_entropy.py`): the gradient of
        # its input, and a chunk of logits of one to two times the input's size.
        return TokenBytes(
            layer_input=e * h,
            layer=layer,
            layer_backward=e * (f + 2 * h),
            head=head,
            loss=3 * e * h,
        )
    return TokenBytes(
        layer_input=e * h,
        layer=layer,
        layer_backward=3 * e * f + 3 * _FP32 * h,
        head=head,
        loss=_LOSS_BYTES_PER_LOGIT * shape.vocab_size,
    )


class _Targets:
    """Which inputs of linear layers are kept: those whose weight, or adapter, is trained."""

    def __init__(self, shape: ModelShape, lora_rank: int, lora_targets: tuple[str, ...]) -> None:
        def has_adapter(name: str) -> bool:
            return lora_rank == 0 or ALL_LINEAR in lora_targets or name in lora_targets

        *projections, _ = shape.attention_linears
        *widening, down = shape.mlp_linears
        self.keep_attention_input = any(has_adapter(name) for name in projections)
        self.keep_mlp_input = any(has_adapter(name) for name in widening)
        self.keep_down_input = has_adapter(down)
        linears = (*shape.attention_linears, *shape.mlp_linears)
        self.num_adapters = sum(map(has_adapter, linears)) if lora_rank else 0


def _norm_bytes(shape: ModelShape, e: int, has_fused_kernels: bool, *, is_trained: bool) -> int:
    """What one norm saves.

    LayerNorm and Liger's RMSNorm save their input. The RMSNorm of transformers saves the input in
    fp32, and for the gradient of its weight the normalized input.
    """
    h = shape.hidden_size
    if has_fused_kernels or not shape.has_gated_mlp:
        return e * h
    return _FP32 * h + (e * h if is_trained else 0)


def _attention_bytes(shape: ModelShape, e: int) -> int:
    """Query, key, value, output and the log-sum-exp of flash attention.

    Dao et al., FlashAttention (arXiv 2205.14135), algorithm 1. The output projection's input
    is the output itself.
    """
    queries = shape.num_attention_heads * shape.head_dim
    keys = shape.num_key_value_heads * shape.head_dim
    return e * (2 * queries + 2 * keys) + _FP32 * shape.num_attention_heads


def _mlp_bytes(shape: ModelShape, e: int, has_fused_kernels: bool, keeps_down_input: bool) -> int:
    """What the activation function and the gate save, and the input of the last linear layer.

    SwiGLU: gate, its activation and up; Liger computes the activation again. ReLU saves its
    output, which is the last layer's input too; other functions save their input beside it.
    """
    f = shape.intermediate_size * experts_per_token(shape)
    if shape.has_gated_mlp:
        return e * f * ((2 if has_fused_kernels else 3) + keeps_down_input)
    is_relu = shape.config.get("activation_function", "relu") == "relu"
    return e * f if is_relu else e * f * (1 + keeps_down_input)


def experts_per_token(shape: ModelShape) -> int:
    """MLPs that one token passes: 1 for dense models."""
    if shape.num_experts == 1:
        return 1
    return int(shape.config.get("num_experts_per_tok") or 2)
