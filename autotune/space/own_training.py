"""What a space of the user's own training command holds fixed, and what all else is compared with.

Does not know how the command is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autotune.knob_values import PARALLEL_DEGREES, LossClass
from autotune.machine.hardware import Hardware
from autotune.question.own_training import OwnTraining
from autotune.question.workload import Workload
from autotune.space.compatibility import reference_strategy
from autotune.space.strategy import FACTS, KNOBS, Strategy

__all__ = ["held_knobs", "own_knobs", "reference_of"]

_HELD = frozenset(
    (*PARALLEL_DEGREES, "precision", "lora_rank", "lora_alpha", "lora_targets", "tf32")
)
"""Knobs that are the program's to decide: who shares a sample, what is learned in what dtype."""

_OF_ANY_MODEL = frozenset(
    (
        "zero_stage",
        "offload_optimizer",
        "offload_param",
        "offload_ratio",
        "micro_batch_size",
        "checkpoint_interval",
        "optimizer",
        "reduce_bucket_size",
        "overlap_comm",
    )
)
"""Knobs that need no knowledge of a model's layers; transformers' own switch stands for
`checkpoint_interval` there."""


def held_knobs(own: OwnTraining) -> frozenset[str]:
    """Names of the knobs that a search of the user's own command does not move.

    Args:
        own: what its first run has shown.
    """
    if not own.is_predictable:
        return frozenset(KNOBS) - _OF_ANY_MODEL
    return _HELD if own.joins_batches else _HELD | {"batching"}


def own_knobs(baseline: Strategy) -> dict[str, Any]:
    """What of the user's own settings all strategies are compared with: what changes the loss.

    Args:
        baseline: the strategy that the user's run has.
    """
    values = baseline.to_dict()
    return {
        name: values[name]
        for name in KNOBS
        if FACTS[name].loss is LossClass.CHANGING or name in ("attention", "fused_kernels")
    }


def reference_of(workload: Workload, hardware: Hardware, own: Mapping[str, Any]) -> Strategy:
    """The reference strategy of a question, with the user's own values where there are some.

    Args:
        workload: what is trained.
        hardware: what it runs on.
        own: values of knobs, by name, as plain JSON values.

    Raises:
        ConfigError: a knob that does not exist, or a value that it does not take.
    """
    usual = reference_strategy(workload, hardware)
    return Strategy.from_dict(usual.to_dict() | dict(own)) if own else usual
