"""The work of routed experts beside their products: rows gathered, weighed and added up.

Counted in transformers 5.24 (`integrations/moe.py`, and the loop of `models/mixtral`), operation
by operation, and held against what is traced of its real code
(`tests/predictor/step_time/test_expert_work.py`). Tokens are taken to be spread evenly. Does not
know at which rates anything is done.
"""

from __future__ import annotations

from dataclasses import dataclass

from autotune.knob_values import Experts
from autotune.predictor.memory.activations import experts_per_token
from autotune.predictor.memory.micro_batch import computed_tokens
from autotune.question.workload import ModelShape, Workload
from autotune.space.strategy import Strategy

__all__ = ["ExpertWork", "RoutedExperts", "active_share", "expert_work"]

_FEW_ROWS = 128
_TILE_OF_FEW, _TILE = 64, 128
"""Rows of a tile of PyTorch's grouped products on Hopper, by the mean rows of a group
(`aten/src/ATen/native/cuda/GroupMM.cu`, `dispatch_bf16_grouped_kernel_on_tile_size`)."""

_ADAPTED_BYTES, _ADAPTED_BACK_BYTES = 8, 6
"""Bytes for one weight of experts with adapters (PEFT, `lora/layer.py`, `ParamWrapper`): the
product of both adapters written; weight and product read, their sum written. Backward: the
gradient written, and read for each of both adapters."""

_MASK_BYTES = 32
"""Bytes for one choice and expert of the mask in which the loop looks its tokens up: made of 64
bit, added up, and read once more."""

_OPERATIONS = {
    Experts.GROUPED_MM: ((0, 34), (0, 37)),
    Experts.BATCHED_MM: ((0, 31), (0, 38)),
    Experts.EAGER: ((23, 22), (20, 12)),
}
"""Operations that torch dispatches for one layer's router and experts with frozen weights, views
among them: for each expert and beside them, forward and backward."""

_DENSE_OPERATIONS = (14, 18)
"""The same of a dense gated MLP."""

_ROUTER_FORWARD_BYTES, _ROUTER_BACKWARD_BYTES = 18, 30
"""Bytes for one expert and token: logits brought to fp32, softmax, the greatest; and back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertWork:
    """Router and experts of one layer, of a forward or a backward, without their products."""

    token_bytes: float
    """Bytes of one token at 16 bit."""
    num_kernels: float
    """Kernels of a whole micro-step, the products among them."""
    fixed_bytes: float = 0.0
    """Bytes of a whole micro-step at 16 bit."""


def expert_work(
    shape: ModelShape, experts: Experts, *, is_trained: bool
) -> tuple[ExpertWork, ExpertWork]:
    """Forward and backward.

    Args:
        shape: a mixture.
        experts: how it is computed.
        is_trained: whether the experts' weights have gradients.
    """
    k, e = experts_per_token(shape), shape.num_experts
    width, row = k * shape.intermediate_size, 2 * shape.hidden_size
    weights = 2 * _weights_of_expert(shape)
    # Gate, activation and router; rows of hidden states, each read or written, come beside them.
    to = 10 * width + _ROUTER_FORWARD_BYTES * e
    back = 26 * width + _ROUTER_BACKWARD_BYTES * e
    if experts is Experts.GROUPED_MM:
        # Rows are gathered, weighed, put back in order and added up; in backward each gathering
        # adds to zeros.
        return (
            ExpertWork(token_bytes=row * (6 * k + 2) + to, num_kernels=21),
            ExpertWork(
                token_bytes=row * (12 * k + 4) + back, num_kernels=26 if is_trained else 23
            ),
        )
    if experts is Experts.BATCHED_MM:
        # Weights are copied for each row, and read again by the product.
        copies, copies_back = 3 * k * weights, (5 if is_trained else 1) * k * weights
        return (
            ExpertWork(token_bytes=copies + row * (4 * k + 2) + to, num_kernels=14),
            ExpertWork(
                token_bytes=copies_back + row * (8 * k + 2) + back,
                num_kernels=25 if is_trained else 18,
            ),
        )
    # Each expert adds its rows to a gradient of all rows, and its weights to one of all weights:
    # zeros, the copy into them, and the sum of both.
    return (
        ExpertWork(
            token_bytes=row * (7 * k + 1) + to + _MASK_BYTES * k * e, num_kernels=10 * e + 12
        ),
        ExpertWork(
            token_bytes=row * (4 * e + 11 * k) + back,
            num_kernels=(22 if is_trained else 16) * e + 5,
            fixed_bytes=4 * e * e * weights if is_trained else 0,
        ),
    )


class RoutedExperts:
    """The experts of a mixture under a strategy, in the place of the MLP of some layers.

    Liger has kernels of its own, of which only the products are counted here.

    Args:
        workload: of a mixture whose experts can be computed in several ways.
        strategy: how it is trained.
    """

    def __init__(self, workload: Workload, strategy: Strategy) -> None:
        shape, experts = workload.model, strategy.experts_implementation
        targets = workload.adapter_targets(strategy.lora_targets)
        self.num_adapters = 0
        """Parameters of adapters on the experts, which no token passes by itself."""
        if strategy.lora_rank:
            self.num_adapters = shape.num_expert_adapters(strategy.lora_rank, targets)
        is_frozen = strategy.lora_rank > 0 and not self.num_adapters
        self._has_liger = strategy.fused_kernels
        self._num_adapted = shape.expert_parameters if self.num_adapters else 0
        self._rank = strategy.lora_rank
        self._implementation, self._num_experts = experts, shape.num_experts
        self._forward, self._backward = expert_work(shape, experts, is_trained=not is_frozen)
        of_layer = shape.num_experts * _weights_of_expert(shape) * shape.num_hidden_layers
        self.share = min(1.0, shape.expert_parameters / of_layer)
        """The fraction of the layers that have routed experts."""
        self._num_tokens = computed_tokens(workload, strategy)
        self._padded = _padded_rows(shape, experts, self._num_tokens / strategy.mlp_tiles)
        # Weights with adapters have gradients, which those of the adapters are made of; and all
        # have with Liger (`ops/fused_moe.py`).
        is_lora = strategy.lora_rank > 0
        self._more_products = 2 if is_lora and (self._has_liger or not is_frozen) else 0

    def matmul_flops(self, per_weight: float) -> float:
        """FLOP of a weight and a token that are done for `per_weight` that are needed."""
        return (per_weight + self._more_products) * self._padded

    def token_bytes(self, dense: float, repeats: int) -> float:
        """Bytes of one token in a mean layer.

        Args:
            dense: those of a dense MLP, forward and backward.
            repeats: how often forward is done again.
        """
        if self._has_liger:
            return dense
        routed = (1 + repeats) * self._forward.token_bytes + self._backward.token_bytes
        return self.share * routed + (1 - self.share) * dense

    def fixed_bytes(self, num_layers: int, repeats: int) -> float:
        """Bytes of a whole micro-step in all layers, those of adapters among them."""
        adapters = (1 + repeats) * _ADAPTED_BYTES + _ADAPTED_BACK_BYTES
        own = 0.0 if self._has_liger else self.share * num_layers * self._backward.fixed_bytes
        return own + adapters * self._num_adapted

    def adapter_flops(self, repeats: int) -> float:
        """FLOP of one token's share: a micro-step multiplies out the adapters of all experts."""
        return (6 + 2 * repeats) * self._rank * self._num_adapted / self._num_tokens

    def num_kernels(self, dense: float, repeats: int) -> float:
        """Kernels of a mean layer; arguments as those of `token_bytes`."""
        if self._has_liger:
            return dense
        routed = (1 + repeats) * self._forward.num_kernels + self._backward.num_kernels
        return self.share * routed + (1 - self.share) * dense

    @property
    def more_operations(self) -> tuple[float, float]:
        """Operations of forward and backward of a mean layer, beyond those of a dense MLP."""
        if self._has_liger:
            return 0.0, 0.0
        forward, backward = (
            self.share * (of_expert * self._num_experts + rest - dense)
            for (of_expert, rest), dense in zip(
                _OPERATIONS[self._implementation], _DENSE_OPERATIONS, strict=True
            )
        )
        return forward, backward


def active_share(shape: ModelShape) -> float:
    """The fraction of the weights of all MLPs that a token passes: shared ones are for all."""
    routed = experts_per_token(shape) / shape.num_experts
    if shape.census is None or not shape.expert_parameters:
        return routed
    share = min(1.0, shape.expert_parameters / shape.census.mlp)
    return 1 - share + share * routed


def _padded_rows(shape: ModelShape, experts: Experts, num_tokens: float) -> float:
    """Rows that the products compute for each row that there is.

    Each group ends somewhere within a tile: on the average half a tile more for each.
    """
    if experts is not Experts.GROUPED_MM:
        return 1.0
    mean = num_tokens * experts_per_token(shape) / shape.num_experts
    tile = _TILE_OF_FEW if mean <= _FEW_ROWS else _TILE
    return 1 + tile / 2 / max(mean, 1.0)


def _weights_of_expert(shape: ModelShape) -> int:
    return 3 * shape.hidden_size * shape.intermediate_size
