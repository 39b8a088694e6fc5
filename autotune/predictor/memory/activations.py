"""Bytes that forward keeps for backward, for one token in a decoder layer and in the head.

Counted tensor by tensor from the layers of transformers 5 (`models/llama/modeling_llama.py`,
`models/opt/modeling_opt.py`) and Liger's (`ops/rms_norm.py`, `ops/swiglu.py`), in the manner of
Korthikanti et al., Reducing Activation Recomputation in Large Transformer Models (arXiv
2205.05198), section 4.1. Does not know ZeRO or optimizers.
"""

from __future__ import annotations

from dataclasses import dataclass

from autotune.knob_values import Attention, CheckpointScope, ModuleGroup, Offload
from autotune.predictor.memory.precision import FP32_BYTES, GroupBytes, group_bytes
from autotune.question.adapter_targets import has_adapter
from autotune.question.workload import ModelShape
from autotune.space.strategy import Strategy

__all__ = ["TokenBytes", "experts_per_token", "token_bytes"]

_LOSS_BYTES_PER_LOGIT = 12
"""Bytes of cross-entropy in fp32 in backward: log-probabilities, their gradient, and the gradient
of the logits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenBytes:
    """Bytes of one token on one rank."""

    layer_input: int
    """The input of a decoder layer: what checkpointing keeps."""
    layer: int
    """Everything that one decoder layer saves for backward."""
    recomputed: int
    """Bytes that backward recomputes in a part of one layer, and holds until it has passed that
    part."""
    layer_backward: int
    """Largest number of bytes alive in one layer's backward, beyond what layers and head have
    kept."""
    head: int
    """Bytes of the final norm and output projection, and of tensors common to all layers."""
    loss: int
    """Bytes alive only around the loss: logits and what is computed from them."""
    host_layer: int
    """Bytes of one layer that are moved to the host until backward, without the checkpointed input
    of the layer."""


def token_bytes(
    shape: ModelShape,
    strategy: Strategy,
    *,
    lora_targets: tuple[str, ...],
    seq_len: int,
    is_cpu: bool = False,
) -> TokenBytes:
    """The bytes that one token holds, by part.

    Tensor parallelism divides heads and the MLP's width, and the logits of a head that shares the
    embedding's weights (`module_inject/auto_tp.py`; other heads gather them). Under sequence
    parallelism the token is one of this rank's tokens: the rank holds all heads of its own tokens,
    or the same number of bytes of other tokens (Jacobs et al., DeepSpeed Ulysses, arXiv
    2309.14509, section 3.1).

    Args:
        shape: the architecture.
        strategy: precisions, kernels, tiles, what is recomputed, adapters.
        lora_targets: the linear layers that have adapters.
        seq_len: tokens of a sample; eager attention keeps a row of this length for each head.
        is_cpu: whether the device is the host, so that nothing can be moved there.
    """
    moves_inputs = strategy.offload_checkpoints is Offload.CPU and not is_cpu
    return _TokenCount(shape, strategy, lora_targets, seq_len, moves_inputs, is_cpu).total()


class _TokenCount:
    """The count of one token, part by part."""

    def __init__(
        self,
        shape: ModelShape,
        strategy: Strategy,
        lora_targets: tuple[str, ...],
        seq_len: int,
        moves_inputs: bool,
        is_cpu: bool,
    ) -> None:
        self._shape = shape
        self._moves_inputs = moves_inputs
        self._strategy = strategy
        self._seq_len = seq_len
        self._e = group_bytes(strategy)
        self._targets = _Targets(shape, strategy.lora_rank, lora_targets)
        self._tensor = strategy.tensor_parallel_size
        # PyTorch's flash kernels for GPUs do not take fp32, and its memory-efficient kernel does
        # not take grouped keys. The kernel that takes both computes the scores as eager attention
        # does.
        is_grouped = shape.num_key_value_heads < shape.num_attention_heads
        has_no_kernel = not is_cpu and is_grouped and self._e.attention == FP32_BYTES
        self._has_scores = strategy.attention is Attention.EAGER or has_no_kernel
        # Compiled layers keep what fused ones do: Inductor's partitioner computes pointwise
        # operations again rather than keep their results (He and Yu, Transcending
        # Runtime-Memory Tradeoffs in Checkpointing by Being Fusion Aware, MLSys 2023).
        self._is_lean = strategy.fused_kernels or strategy.torch_compile

    def total(self) -> TokenBytes:
        """All parts."""
        strategy, shape = self._strategy, self._shape
        h, e = shape.hidden_size, self._e
        norm = _norm_bytes(shape, e, self._is_lean, is_trained=not strategy.lora_rank)
        attention, mlp = self._attention(), self._mlp()
        kept_attention, kept_mlp = attention, mlp
        recomputed = host = 0
        block_input = e.residual * h
        if strategy.checkpoint_scope is CheckpointScope.ATTENTION:
            kept_attention, recomputed = block_input, attention
        if strategy.checkpoint_scope is CheckpointScope.MLP or strategy.mlp_tiles > 1:
            kept_mlp, recomputed = block_input, max(recomputed, mlp // strategy.mlp_tiles)
        if self._moves_inputs and strategy.checkpoint_scope is not CheckpointScope.LAYER:
            host = block_input
        # LoRA freezes the output projection, which then needs no input for its backward; Liger's
        # loss has done its backward already.
        keeps_input = not strategy.lora_rank and not strategy.fused_kernels
        head = norm + e.lm_head * h * keeps_input
        widest = max(self._mlp_backward(), self._attention_backward())
        return TokenBytes(
            layer_input=e.residual * h,
            layer=2 * norm + kept_attention + kept_mlp - host,
            recomputed=recomputed,
            # By then, backward has freed what the head kept.
            layer_backward=max(0, widest - head),
            head=head + self._mask(),
            loss=self._loss(),
            host_layer=host,
        )

    def _attention(self) -> int:
        """Bytes that attention saves, including its input.

        Flash attention saves query, key, value, output and the log-sum-exp: Dao et al.,
        FlashAttention (arXiv 2205.14135), algorithm 1. The output projection's input is the output
        itself. Eager attention saves keys and values for each query head (`repeat_kv`), and the
        probabilities twice: in fp32, in which softmax computes, and in its own precision.
        """
        shape, e = self._shape, self._e.attention
        targets, rank = self._targets, self._strategy.lora_rank
        outside = e * shape.hidden_size * targets.keep_attention_input
        outside += self._e.residual * rank * targets.num_attention
        queries = shape.num_attention_heads * shape.head_dim
        keys = shape.num_key_value_heads * shape.head_dim
        if not self._has_scores:
            inside = e * (2 * queries + 2 * keys) + FP32_BYTES * shape.num_attention_heads
        else:
            converted = e if e != FP32_BYTES else 0
            scores = shape.num_attention_heads * self._seq_len * (FP32_BYTES + converted)
            inside = e * 4 * queries + scores
        return outside + inside // self._tensor

    def _mlp(self) -> int:
        """Bytes that the MLP saves, including its input.

        It saves what the activation function and the gate save, and the input of the last linear
        layer. SwiGLU saves the gate, its activation and up; Liger computes the activation again.
        ReLU saves its output, which is also the last layer's input; other functions save their
        input in addition.
        """
        shape, e, targets = self._shape, self._e.mlp, self._targets
        outside = e * shape.hidden_size * targets.keep_mlp_input
        outside += self._e.residual * self._strategy.lora_rank * targets.num_mlp
        f = shape.intermediate_size * experts_per_token(shape)
        if shape.has_gated_mlp:
            inside = e * f * ((2 if self._is_lean else 3) + targets.keep_down_input)
        else:
            is_relu = shape.config.get("activation_function", "relu") == "relu"
            inside = e * f if is_relu else e * f * (1 + targets.keep_down_input)
        return outside + inside // self._tensor

    def _mlp_backward(self) -> int:
        """Bytes of the gradients within the MLP.

        `tests/profile/test_trace.py` compares them with traces of the code. With tiles, the
        gradient of the whole output is held as well.
        """
        shape, e = self._shape, self._e
        divisor = self._tensor * self._strategy.mlp_tiles
        whole = e.residual * shape.hidden_size if self._strategy.mlp_tiles > 1 else 0
        if self._is_lean:
            inside = e.mlp * shape.intermediate_size // divisor
            return inside + 2 * e.residual * shape.hidden_size + whole
        inside = 2 * e.mlp * shape.intermediate_size // divisor
        return inside + e.residual * shape.hidden_size + whole

    def _attention_backward(self) -> int:
        """Bytes of the scores' two gradients in fp32; 0 if attention keeps no scores.

        By then, the copy of the scores in 16 bit is freed.
        """
        if not self._has_scores:
            return 0
        row = self._shape.num_attention_heads * self._seq_len // self._tensor
        converted = self._e.attention if self._e.attention != FP32_BYTES else 0
        return row * (2 * FP32_BYTES - converted)

    def _mask(self) -> int:
        """Bytes of the causal mask, which transformers makes for eager attention only."""
        is_eager = self._strategy.attention is Attention.EAGER
        return self._e.residual * self._seq_len if is_eager else 0

    def _loss(self) -> int:
        shape, strategy = self._shape, self._strategy
        if strategy.fused_kernels:
            # Liger's fused linear cross-entropy (`ops/fused_linear_cross_entropy.py`): the
            # gradient of its input, and a chunk of logits of one to two times the input's size.
            return 3 * self._e.lm_head * shape.hidden_size
        divisor = strategy.loss_tiles * (self._tensor if shape.tie_word_embeddings else 1)
        # With tiles (`techniques/loss_tiles.py`), the gradient of the whole input is assembled.
        whole = self._e.residual * shape.hidden_size if strategy.loss_tiles > 1 else 0
        return _LOSS_BYTES_PER_LOGIT * shape.vocab_size // divisor + whole


class _Targets:
    """Which inputs of linear layers are kept: those of a trained weight or adapter."""

    def __init__(self, shape: ModelShape, lora_rank: int, lora_targets: tuple[str, ...]) -> None:
        def keeps(group: ModuleGroup) -> dict[str, bool]:
            linears = shape.attention_linears if group is attention else shape.mlp_linears
            # The experts of a mixture have no adapters.
            can_have = shape.adapter_linears[group]
            return {
                name: lora_rank == 0
                or (name in can_have and has_adapter(name, group, lora_targets))
                for name in linears
            }

        attention, mlp = ModuleGroup.ATTENTION, ModuleGroup.MLP
        *projections, _ = keeps(attention).values()
        *widening, down = keeps(mlp).values()
        self.keep_attention_input = any(projections)
        self.keep_mlp_input = any(widening)
        self.keep_down_input = down
        self.num_attention = sum(keeps(attention).values()) if lora_rank else 0
        self.num_mlp = sum(keeps(mlp).values()) if lora_rank else 0


def _norm_bytes(shape: ModelShape, e: GroupBytes, is_lean: bool, *, is_trained: bool) -> int:
    """Bytes that one norm saves for backward.

    LayerNorm and Liger's RMSNorm save their input. The RMSNorm of transformers saves the input in
    fp32, and the normalized input for the gradient of its weight.
    """
    h = shape.hidden_size
    if is_lean or not shape.has_gated_mlp:
        return e.norm * h
    return FP32_BYTES * h + (e.norm * h if is_trained else 0)


def experts_per_token(shape: ModelShape) -> int:
    """MLPs that one token passes: 1 for dense models."""
    return shape.experts_per_token
