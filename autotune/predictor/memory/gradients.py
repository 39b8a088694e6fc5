"""Gradients and their buckets on the device of one rank, as DeepSpeed 0.19 holds them.

Read from `runtime/zero/stage_1_and_2.py`, `runtime/zero/stage3.py` and
`runtime/bf16_optimizer.py`.
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
    """The trained parameters of one rank's shard, and their bytes."""

    num: int
    owned: float
    """Parameters that ZeRO assigns to this rank."""
    gradient: float
    """Bytes of a gradient, equal to those of its weight; the mean if there are several
    precisions."""
    master: float
    """Bytes of a master weight; the mean if there are several precisions; 0 without masters."""
    is_converted: bool
    """Whether gradients are converted to the master's precision."""
    is_offloaded: bool
    device_fraction: float
    """The fraction of states and master weights that is on the device."""


def bucket(strategy: Strategy, trained: Trained, sizes: GroupBytes) -> int:
    """Bytes of one reduction bucket, in the precision of the optimizer's first group."""
    if not strategy.zero_stage:
        return 0
    e = sizes.residual
    if not sizes.is_uniform:
        e = 2 if Precision.FP16 in strategy.parameter_precisions else FP32_BYTES
    return e * min(strategy.reduce_bucket_size, trained.num)


def held_gradients(strategy: Strategy, trained: Trained, is_accumulating: bool) -> float:
    """Elements of gradients on the device between two micro-steps.

    Stages 0 and 1 accumulate all gradients and reduce them in the last micro-step. Stage 2 keeps
    this rank's partition. Stage 3 has a buffer for its partition from the start.
    """
    stage = strategy.zero_stage
    if stage == 3 and trained.is_offloaded:
        # Only the sub-groups that stay on the device, in the master's precision.
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
        strategy: the strategy of the trial.
        trained: the parameters that the optimizer sees.
        held: elements on the device between micro-steps, from `held_gradients`.
        num_ranks: all ranks of the trial.
        is_accumulating: whether a step has several micro-steps.
    """
    ranks = zero_size(strategy, num_ranks)
    match strategy.zero_stage:
        case 0:
            return float(trained.num)
        case 1:
            # One rank reduces only after backward. With several ranks, gradients go into the
            # buckets as soon as they are computed, unless earlier micro-steps accumulated them.
            keeps_all = num_ranks == 1 or is_accumulating
            return trained.num if keeps_all else trained.num / ranks
        case 2 if not trained.is_offloaded:
            return held + trained.num / ranks
    return held


def of_bf16_pipeline(trained: Trained) -> dict[str, Any]:
    """Fields of `States` for a pipeline in bf16 without ZeRO, which `BF16_Optimizer` trains.

    `BF16_Optimizer` has a buffer of all gradients from the start. The weights' own gradients exist
    as well, and are cleared, not freed. There are no buckets. The optimizer reads a copy of this
    rank's partition in the master's precision. States and masters are divided as by ZeRO-1
    (`engine.py`, `_do_optimizer_sanity_check`; `bf16_optimizer.py`, `step`, `clear_lp_grads`).
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
    """Whether gradients are reduced during backward; in a pipeline they never are."""
    return strategy.overlap_comm and strategy.pipeline_parallel_size == 1
