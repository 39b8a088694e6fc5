"""Compares the memory of two strategies where that can be told without numbers.

A knob that is in no table here must be the same in both, as any new knob is until its order is
known. Does not know models, machines or trials.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from autotune.knob_values import Attention, MasterWeights, Offload
from autotune.space.optimizers import OPTIMIZERS
from autotune.space.strategy import KNOBS, Strategy

__all__ = ["holds_as_much", "needs_as_much"]

_Order = Callable[[Strategy, Strategy, bool], bool]
"""Whether the first needs as much as the second, by one knob; of the host's memory, or else of the
device's."""


def needs_as_much(strategy: Strategy, other: Strategy, *, of_host: bool = False) -> bool:
    """Whether `strategy` needs at least as much memory as `other` in a training step.

    Args:
        strategy: the one that may need more.
        other: the one that may need less.
        of_host: compare the host's memory, not the device's.
    """
    return _is_in_order(_OF_A_STEP, strategy, other, of_host)


def holds_as_much(strategy: Strategy, other: Strategy, *, of_host: bool = False) -> bool:
    """Whether `strategy` holds at least as much as `other` before any batch: as `needs_as_much`.

    Activations, kernels and tiles are of no meaning then.
    """
    return _is_in_order(_OF_STATES, strategy, other, of_host)


def _is_in_order(
    orders: Mapping[str, _Order], strategy: Strategy, other: Strategy, of_host: bool
) -> bool:
    for knob in KNOBS:
        if getattr(strategy, knob) == getattr(other, knob):
            continue
        order = orders.get(knob)
        if order is None or not order(strategy, other, of_host):
            return False
    return True


def _in_any_order(strategy: Strategy, other: Strategy, of_host: bool) -> bool:
    return True


def _by_micro_batch(strategy: Strategy, other: Strategy, of_host: bool) -> bool:
    return strategy.micro_batch_size >= other.micro_batch_size


def _by_checkpoints(strategy: Strategy, other: Strategy, of_host: bool) -> bool:
    """No recomputation needs most.

    Different intervals are in no order: one keeps more inputs, the other recomputes more. Nor are
    different scopes.
    """
    return strategy.checkpoint_interval == 0


def _by_checkpoint_place(strategy: Strategy, other: Strategy, of_host: bool) -> bool:
    return not of_host and strategy.offload_checkpoints is Offload.NONE


def _by_mlp_tiles(strategy: Strategy, other: Strategy, of_host: bool) -> bool:
    return strategy.mlp_tiles <= other.mlp_tiles


def _by_loss_tiles(strategy: Strategy, other: Strategy, of_host: bool) -> bool:
    return strategy.loss_tiles <= other.loss_tiles


def _by_fused_kernels(strategy: Strategy, other: Strategy, of_host: bool) -> bool:
    return not strategy.fused_kernels


def _by_attention(strategy: Strategy, other: Strategy, of_host: bool) -> bool:
    """Eager attention keeps all that others do, and the scores."""
    return strategy.attention is Attention.EAGER


def _by_bucket(strategy: Strategy, other: Strategy, of_host: bool) -> bool:
    return strategy.reduce_bucket_size >= other.reduce_bucket_size


def _by_overlap(strategy: Strategy, other: Strategy, of_host: bool) -> bool:
    """Overlapping takes a second bucket."""
    return strategy.overlap_comm


def _by_second_copy(strategy: Strategy, other: Strategy, of_host: bool) -> bool:
    """The copy is divided over so many ranks; 1 stands for none."""

    def part(of: Strategy) -> float:
        size = of.zero_hpz_partition_size
        return 1 / size if size > 1 else 0.0

    return part(strategy) >= part(other)


def _by_master_weights(strategy: Strategy, other: Strategy, of_host: bool) -> bool:
    return strategy.master_weights is MasterWeights.FP32


def _by_optimizer(strategy: Strategy, other: Strategy, of_host: bool) -> bool:
    """AdamW's moments are no smaller than one moment, or a form in 8 bit, be they fp32 or bf16.

    Paged states may be on the host, which others never use.
    """
    if of_host and OPTIMIZERS[other.optimizer].is_paged:
        return False
    return other.optimizer in OPTIMIZERS[strategy.optimizer].smaller


def _by_optimizer_place(strategy: Strategy, other: Strategy, of_host: bool) -> bool:
    """What one strategy offloads is what it needs of the host; CPU and disk are in no order."""
    return not of_host and strategy.offload_optimizer is Offload.NONE


def _by_offload_ratio(strategy: Strategy, other: Strategy, of_host: bool) -> bool:
    if strategy.offload_optimizer is Offload.NONE:
        return not of_host
    if of_host:
        return strategy.offload_ratio >= other.offload_ratio
    return strategy.offload_ratio <= other.offload_ratio


def _by_parameter_place(strategy: Strategy, other: Strategy, of_host: bool) -> bool:
    return not of_host and strategy.offload_param is Offload.NONE


_OF_ALL_TIMES: Mapping[str, _Order] = {
    "offload_optimizer": _by_optimizer_place,
    "offload_ratio": _by_offload_ratio,
    "offload_param": _by_parameter_place,
    "optimizer": _by_optimizer,
    "master_weights": _by_master_weights,
    "reduce_bucket_size": _by_bucket,
    "overlap_comm": _by_overlap,
    "zero_hpz_partition_size": _by_second_copy,
    # They are numbers that nothing's size depends on.
    "tf32": _in_any_order,
    "lora_alpha": _in_any_order,
}

_OF_A_STEP: Mapping[str, _Order] = {
    **_OF_ALL_TIMES,
    "micro_batch_size": _by_micro_batch,
    "checkpoint_interval": _by_checkpoints,
    "checkpoint_scope": _by_checkpoints,
    "offload_checkpoints": _by_checkpoint_place,
    "mlp_tiles": _by_mlp_tiles,
    "loss_tiles": _by_loss_tiles,
    "fused_kernels": _by_fused_kernels,
    "attention": _by_attention,
}

_OF_STATES: Mapping[str, _Order] = {
    **_OF_ALL_TIMES,
    **dict.fromkeys(
        (
            "micro_batch_size",
            "checkpoint_interval",
            "checkpoint_scope",
            "offload_checkpoints",
            "mlp_tiles",
            "loss_tiles",
            "fused_kernels",
            "attention",
            "torch_compile",
            "experts_implementation",
        ),
        _in_any_order,
    ),
}
