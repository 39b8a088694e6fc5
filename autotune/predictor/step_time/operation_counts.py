"""The operations and memory traffic of one rank in a micro-step.

Does not know times, nor the communication between ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

from autotune.knob_values import Attention, GroupPrecision, ModuleGroup
from autotune.machine.hardware import Hardware
from autotune.predictor.memory.micro_batch import attended_tokens, has_mask
from autotune.predictor.memory.precision import (
    GroupBytes,
    attention_slowdown,
    group_bytes,
    group_slowdowns,
)
from autotune.predictor.memory.sharding import RankShard
from autotune.predictor.step_time.expert_work import RoutedExperts, active_share
from autotune.predictor.step_time.layer_kernels import layer_kernels
from autotune.predictor.step_time.repeats import Repeats, repeats
from autotune.predictor.step_time.score_traffic import MASK_SLOWDOWN, attention_traffic
from autotune.question.adapter_targets import has_adapter
from autotune.question.workload import Method, Workload
from autotune.space.strategy import Strategy

__all__ = ["OperationCounts", "micro_step_counts"]

_QUANTIZE_BYTES = 25
_QUANTIZE_BYTES_COMPILED = 5
"""Bytes to convert a 16-bit number to 8 bit, as `techniques/fp8.py` does: magnitude 4, maximum 2,
conversion to fp32 6, division 8, conversion to 8 bit 5. Compiled, one pass finds the maximum and
one converts."""

_TRANSPOSE_BYTES = 2
"""Bytes to transpose an 8-bit number."""

_DEQUANTIZE_BYTES = 4.7
"""Bytes to convert a 4-bit weight to 16 bit: 0.5 read, 2 written, 2 read by the matrix product,
and a 64th of 13 for a block's absmax, which is converted from 8 bit to fp32 (bitsandbytes,
`backends/cuda/ops.py`)."""

_ADAPTER_FORWARD_BYTES = (2, 12)
_ADAPTER_BACKWARD_BYTES = (10, 8)
"""Bytes of an adapter for one element of its linear layer's input, and of its output, from
`result + lora_B(lora_A(x)) * scaling` in PEFT's `lora/layer.py`. Forward: reading the input 2;
writing the output 2, scaling 4, addition 6. Backward: reading the input 2, writing its gradient 2,
addition 6; scaling the output's gradient 4, reading it twice 4."""

_GRADIENT_PASSES = 6
"""Number of times that a gradient is read or written in a micro-step: written; read and written
into the bucket; read twice and written by the accumulation (`stage_1_and_2.py`,
`reduce_independent_p_g_buckets_and_remove_grads`)."""

_EAGER_KERNELS = 6
"""Kernels of eager attention in addition to one: two products, mask, softmax, conversions."""

_ADAPTER_KERNELS = 5
"""Kernels of an adapter in forward: two products, scaling, addition, and dropout or a
conversion."""

_HEAD_KERNELS = 12
"""Kernels of final norm, output projection and loss, forward and backward."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OperationCounts:
    """Operations and bytes of one token, unless a field says that it is of a whole micro-step."""

    matmul_flops: float
    """FLOP at 16 bit; other precisions are weighted by their slowdown."""
    attention_flops: float
    attended_tokens: float
    """Tokens of the sample that a token lies in."""
    traffic_bytes: float
    """Bytes of kernels that also reduce, convert or gather."""
    stream_bytes: float
    """Bytes of plain additions, multiplications and thin products over large tensors."""
    fixed_bytes: float
    """Bytes of a whole micro-step: conversion of weights."""
    weight_bytes: float
    """Bytes of a whole micro-step: reading weights; writing, gathering and accumulating their
    gradients."""
    num_kernels: float
    """Kernels of a whole micro-step."""
    loss_pieces: int
    """Most pieces of a fused loss, each of which reads the whole head; 0 without a fused loss."""
    loss_piece_bytes: float
    """Bytes of one piece of a fused loss: the head's weights and their gradient."""
    loss_flops: float
    """FLOP of a fused loss, which `matmul_flops` includes."""


def micro_step_counts(
    workload: Workload,
    hardware: Hardware,
    strategy: Strategy,
    shard: RankShard,
    adapters: int,
    times: Repeats | None = None,
) -> OperationCounts:
    """Floating point operations and bytes of forward and backward.

    Each weight takes two operations in forward, two for the gradient of the input, and two for the
    gradient of the weight, which frozen weights do not need: Kaplan et al. (arXiv 2001.08361),
    section 2.1. Causal attention takes 2 s q operations for a token in a layer in forward, and
    five products in backward for forward's two: Dao, FlashAttention-2 (arXiv 2307.08691), section
    4.1. Eager attention computes all s scores of a token, in two products forward and four
    backward. Checkpointing repeats forward.

    Args:
        workload: the model, the sequence length, the method.
        hardware: gives the slowdowns of precisions.
        strategy: the strategy.
        shard: the layers of this rank.
        adapters: parameters of LoRA on them; 0 if all weights are trained.
        times: how often forward is repeated; by default as the strategy says.
    """
    times = times or repeats(strategy)
    return _WorkCount(workload, hardware, strategy, shard, adapters, times).total()


class _WorkCount:
    """The count of one micro-step, part by part."""

    def __init__(
        self,
        workload: Workload,
        hardware: Hardware,
        strategy: Strategy,
        shard: RankShard,
        adapters: int,
        times: Repeats,
    ) -> None:
        self._workload = workload
        self._shape = workload.model
        self._strategy = strategy
        self._shard = shard
        self._adapters = adapters
        self._repeats = times
        self._sizes = group_bytes(strategy)
        self._slowdowns = group_slowdowns(strategy, hardware)
        self._attention_slowdown = attention_slowdown(strategy, hardware)
        self._tensor = shard.tensor_parallel_size
        self._attended = attended_tokens(workload, strategy)
        self._has_mask = has_mask(workload, strategy)
        self._kernels = layer_kernels(
            self._shape,
            self._tensor,
            is_fused=strategy.fused_kernels or strategy.torch_compile,
        )
        self._experts: RoutedExperts | None = None
        if self._shape.expert_parameters:
            self._experts = RoutedExperts(workload, strategy)

    def total(self) -> OperationCounts:
        """All parts."""
        rest, num_layers = self._repeats, self._shard.num_layers
        queries = self._shape.num_attention_heads * self._shape.head_dim / self._tensor
        is_eager = self._strategy.attention is Attention.EAGER
        pairs = self._attended * queries * num_layers
        attention, products = 0.0, 0.0
        if is_eager:
            # Only linear layers compute in 8 bit.
            slow = max(1.0, self._slowdowns[ModuleGroup.ATTENTION])
            products = slow * (4 + 8 + 4 * rest.attention) * pairs
        else:
            attention = self._attention_slowdown * (2 + 5 + 2 * rest.attention) * pairs
            if self._has_mask:
                attention *= MASK_SLOWDOWN
        moved = attention_traffic(
            self._shape,
            self._strategy,
            attended=self._attended,
            has_mask=self._has_mask,
            element_bytes=self._sizes.attention,
            repeats=rest.attention,
        )
        traffic = (self._layer_traffic() + moved) * num_layers + self._loss_traffic()
        casts, fixed = self._quantized()
        fixed += self._dequantized()
        if self._experts:
            fixed += self._experts.fixed_bytes(num_layers, rest.mlp) * self._sizes.mlp / 2
        return OperationCounts(
            matmul_flops=self._matmul() + products,
            attention_flops=attention,
            attended_tokens=self._attended,
            traffic_bytes=traffic + casts,
            stream_bytes=self._adapter_traffic() if self._adapters else 0,
            fixed_bytes=fixed,
            weight_bytes=self._weight_traffic(),
            num_kernels=self._num_kernels(),
            loss_pieces=self._loss_pieces(),
            loss_piece_bytes=self._head_passes()
            * self._sizes.lm_head
            * self._shard.parameters.head,
            loss_flops=(4 if self._adapters else 6) * self._shard.parameters.head,
        )

    def _matmul(self) -> float:
        """FLOP of one token in linear layers, adapters and the output projection."""
        parameters, times = self._shard.parameters, self._repeats
        per_weight = 4 if self._adapters else 6
        slow = self._slowdowns
        of_mlp: float = per_weight + 2 * times.mlp
        per_adapter = 6 + 2 * max(times.attention, times.mlp)
        adapters: float = per_adapter * self._adapters
        if self._experts:
            of_mlp = self._experts.matmul_flops(of_mlp)
            part = self._shard.num_layers / self._shape.num_hidden_layers
            adapters += part * self._experts.more_adapter_flops(per_adapter, times.mlp)
        attention = (per_weight + 2 * times.attention) * parameters.attention
        mlp = of_mlp * parameters.mlp * active_share(self._shape)
        head = (per_weight + 2 * times.head) * parameters.head
        return (
            slow[ModuleGroup.ATTENTION] * attention
            + slow[ModuleGroup.MLP] * mlp
            + slow[ModuleGroup.LM_HEAD] * head
            + adapters
        )

    def _layer_traffic(self) -> float:
        """Bytes that a layer's pointwise kernels move for one token, forward and backward."""
        kernels, times, sizes = self._kernels, self._repeats, self._sizes
        passes = 1 + kernels.backward
        norm = 2 if kernels.upcasts_norm else sizes.norm
        mlp = (passes + times.mlp) * kernels.mlp_bytes
        return (
            (passes + times.rest)
            * (kernels.norm_bytes * norm + kernels.residual_bytes * sizes.residual)
            + (passes + times.attention) * kernels.attention_bytes * sizes.attention
            + (self._experts.token_bytes(mlp, times.mlp) if self._experts else mlp) * sizes.mlp
        ) / 2 + self._border_traffic(sizes)

    def _weight_traffic(self) -> float:
        """Bytes of weights that each pass reads, and of gradients of the trained ones."""
        times, size = self._repeats, self._sizes.residual
        parameters = self._shard.parameters
        if self._workload.method is Method.QLORA:
            return 0.0
        read = (
            (2 + times.attention) * parameters.attention
            + (2 + times.mlp) * parameters.mlp
            + (2 + times.head) * parameters.head
        )
        trained = 0 if self._adapters else parameters.total
        return size * (read + _GRADIENT_PASSES * trained)

    def _loss_pieces(self) -> int:
        """Liger cuts the tokens as often as the vocabulary is wider than the hidden states.

        `ops/fused_linear_cross_entropy.py`, `inc_factor`.
        """
        if not self._strategy.fused_kernels or not self._shard.has_head:
            return 0
        return -(-self._shard.parameters.head // self._shape.hidden_size**2)

    def _head_passes(self) -> int:
        """Times that a piece reads or writes something of the head's size.

        Weights for the logits and for the gradient of the input; the weights' own is added up.
        """
        return 2 if self._adapters else 4

    def _num_kernels(self) -> float:
        """Launches on the device, forward and backward; a tile has launches of its own."""
        kernels, times, strategy = self._kernels, self._repeats, self._strategy
        passes = 1 + kernels.backward
        attention = len(self._shape.attention_linears) + 1 + kernels.attention_kernels
        attention += _EAGER_KERNELS * (strategy.attention is Attention.EAGER)
        attention += _ADAPTER_KERNELS * len(self._adapted(ModuleGroup.ATTENTION))
        mlp = len(self._shape.mlp_linears) + kernels.mlp_kernels
        mlp += _ADAPTER_KERNELS * len(self._adapted(ModuleGroup.MLP))
        mlp *= passes + times.mlp
        if self._experts:
            mlp = self._experts.num_kernels(mlp, times.mlp)
        of_layer = (
            (passes + times.rest) * (kernels.norm_kernels + kernels.residual_kernels)
            + (passes + times.attention) * attention
            + mlp * strategy.mlp_tiles
        )
        head = _HEAD_KERNELS * strategy.loss_tiles * self._shard.has_head
        return self._shard.num_layers * of_layer + head

    def _border_traffic(self, sizes: GroupBytes) -> float:
        """Casts of what enters and leaves attention and MLP, where theirs is another precision."""
        h, residual = self._shape.hidden_size, sizes.residual
        others = [size for size in (sizes.attention, sizes.mlp) if size != residual]
        return sum(3 * 2 * h * (residual + size) for size in others)

    def _loss_traffic(self) -> float:
        """Logits written, read as fp32, exponentiated, and the same for their gradient."""
        if not self._shard.has_head:
            return 0.0
        of_logit = 8 if self._strategy.fused_kernels else 40 + 16 * self._repeats.head
        divisor = self._tensor if self._shape.tie_word_embeddings else 1
        return of_logit * self._shape.vocab_size / divisor

    def _adapter_traffic(self) -> float:
        forward, backward = _ADAPTER_FORWARD_BYTES, _ADAPTER_BACKWARD_BYTES
        moved = 0.0
        for times, sides in (
            (self._repeats.attention, self._adapted_sides(ModuleGroup.ATTENTION)),
            (self._repeats.mlp, self._adapted_sides(ModuleGroup.MLP)),
        ):
            moved += sum(
                side * ((1 + times) * forward[index] + backward[index])
                for index, side in enumerate(sides)
            )
        return moved * self._sizes.residual / 2 * self._shard.num_layers / self._tensor

    def _adapted(self, group: ModuleGroup) -> list[tuple[int, int]]:
        """Inputs and outputs of each linear layer with an adapter in one layer."""
        if not self._adapters:
            return []
        targets = self._workload.adapter_targets(self._strategy.lora_targets)
        linears = self._shape.adapter_linears[group]
        return [sides for name, sides in linears.items() if has_adapter(name, group, targets)]

    def _adapted_sides(self, group: ModuleGroup) -> tuple[int, int]:
        """Inputs and outputs of all linear layers with an adapter together."""
        adapted = self._adapted(group)
        return sum(i for i, _ in adapted), sum(o for _, o in adapted)

    def _dequantized(self) -> float:
        """QLoRA: each pass unpacks every weight, backward once."""
        if self._workload.method is not Method.QLORA:
            return 0.0
        parameters, times = self._shard.parameters, self._repeats
        return _DEQUANTIZE_BYTES * (
            (2 + times.attention) * parameters.attention + (2 + times.mlp) * parameters.mlp
        )

    def _quantized(self) -> tuple[float, float]:
        """fp8: input and weight in forward, gradient, weight and input in backward.

        Returns:
            Bytes of one token, and of a whole micro-step.
        """
        is_compiled = self._strategy.torch_compile
        cost = _QUANTIZE_BYTES_COMPILED if is_compiled else _QUANTIZE_BYTES
        of_token = of_step = 0.0
        linears = self._shape.attention_linears, self._shape.mlp_linears
        parts = (
            (ModuleGroup.ATTENTION, linears[0], self._repeats.attention),
            (ModuleGroup.MLP, linears[1], self._repeats.mlp),
            (ModuleGroup.LM_HEAD, {"": self._head_sides}, self._repeats.head),
        )
        for group, layers, times in parts:
            if self._strategy.precision_of(group) is not GroupPrecision.FP8:
                continue
            num = self._shard.num_layers if group is not ModuleGroup.LM_HEAD else 1
            for inputs, outputs in layers.values():
                in_backward = (outputs + inputs) * (cost + _TRANSPOSE_BYTES)
                of_token += num * ((1 + times) * cost * inputs + in_backward)
                of_step += num * (2 + times) * cost * inputs * outputs
        return of_token, of_step

    @property
    def _head_sides(self) -> tuple[int, int]:
        has_head = self._shard.has_head
        return self._shape.hidden_size * has_head, self._shape.vocab_size * has_head
