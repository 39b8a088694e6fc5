"""Gradients and their buckets on the device of one rank, as DeepSpeed 0.19 holds them.

Read from `runtime/zero/stage_1_and_2.py`, `stage3.py` beside it and `runtime/bf16_optimizer.py`.
Does not know weights or optimizer states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autotune.knob_values import Precision
from autotune.predictor.memory.precision import FP32_BYTES, GroupBytes
from autotune.predictor.memory.sharding import zero_size
from autotune.space.strategy import Strategy

__all__ = [
    "Trained",
    "bucket",
    "final_gradients",
    "held_gradients",
    "of_bf16_pipeline",
    "overlaps",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """The trained parameters of one rank's shard, and in how many bytes."""

    num: int
    owned: float
    """Parameters of this rank after ZeRO has divided them."""
    gradient: float
    """Bytes of a gradient, as of the weight; of several precisions their mean."""
    master: float
    """Bytes of a master weight; of several precisions the mean, 0 where none has any."""
    is_converted: bool
    """Whether gradients are converted to the master's precision."""
    is_offloaded: bool
    device_fraction: float
    """The fraction of states and master weights that is on the device."""


def bucket(strategy: Strategy, trained: Trained, sizes: GroupBytes) -> int:
    """Bytes of one reduction bucket; of several precisions that of the optimizer's first group."""
    if not strategy.zero_stage:
        return 0
    e = sizes.residual
    if not sizes.is_uniform:
        e = 2 if Precision.FP16 in strategy.parameter_precisions else FP32_BYTES
    return e * min(strategy.reduce_bucket_size, trained.num)


def held_gradients(strategy: Strategy, trained: Trained, is_accumulating: bool) -> float:
    """Elements of gradients on the device between two micro-steps.

    Stages 0 and 1 accumulate all of them and reduce at the last micro-step; stage 2 keeps this
    rank's part; stage 3 has a buffer for its part from the start.
    """
    stage = strategy.zero_stage
    if stage == 3 and trained.is_offloaded:
        # Of sub-groups that stay on the device, in the master's precision.
        return trained.owned * trained.device_fraction * trained.master / trained.gradient
    if stage == 3:
        return trained.owned
    if not is_accumulating or (stage == 2 and trained.is_offloaded):
        return 0.0
    return trained.owned if stage == 2 else float(trained.num)


def final_gradients(
    strategy: Strategy, trained: Trained, held: float, *, num_ranks: int, is_accumulating: bool
) -> float:
    """Elements of gradients on the device when backward ends.

    Args:
        strategy: what is done.
        trained: what the optimizer sees.
        held: elements that are there between micro-steps.
        num_ranks: all of them.
        is_accumulating: whether a step has several micro-steps.
    """
    ranks = zero_size(strategy, num_ranks)
    match strategy.zero_stage:
        case 0:
            return float(trained.num)
        case 1:
            # One rank reduces only after backward. With more, gradients lie in the buckets as
            # soon as they are made, except where micro-steps have accumulated them before.
            keeps_all = num_ranks == 1 or is_accumulating
            return trained.num if keeps_all else trained.num / ranks
        case 2 if not trained.is_offloaded:
            return held + trained.num / ranks
    return held


def of_bf16_pipeline(trained: Trained) -> dict[str, Any]:
    """A pipeline in bf16 without ZeRO is trained by `BF16_Optimizer`.

    Its buffer of all gradients is there from the start, beside the weights' own, which are cleared
    and not freed; there are no buckets. The optimizer reads a copy of this rank's part in the
    master's precision. States and masters are divided as by ZeRO-1 (`engine.py`,
    `_do_optimizer_sanity_check`; `bf16_optimizer.py`, `step`, `clear_lp_grads`).
    """
    accumulated = 2 * int(trained.gradient * trained.num)
    return {
        "offload_buffers": 0,
        "accumulated_gradients": accumulated,
        "received_gradients": 0,
        "buckets": 0,
        "buckets_in_forward": 0,
        "buckets_in_step": 0,
        "final_gradients": accumulated,
        "gathered_weights": 0,
        "span_weights": 0,
        "beside_at_most": 0,
        "late_bucket": 0,
        "offload_copies": 0,
        "first_copies": 0,
        "step_buffers": accumulated + int(trained.master * trained.owned),
        "init_buffers": int(trained.gradient * trained.num + trained.master * trained.owned),
        "init_beside": 0,
    }


def overlaps(strategy: Strategy) -> bool:
    """Whether gradients travel while backward goes on; in a pipeline they never do."""
    return strategy.overlap_comm and strategy.pipeline_parallel_size == 1
