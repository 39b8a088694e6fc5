"""What is not worth launching: what cannot fit by arithmetic, or by the order of strategies.

Does not know how strategies are proposed or run.
"""

from __future__ import annotations

from collections.abc import Sequence

from autotune.knobs import MasterWeights, Offload, Optimizer
from autotune.strategy import Strategy
from autotune.trial import Failure, FailureKind, Phase, Prediction, Trial

__all__ = ["DominancePruner", "PredictedMemoryPruner"]

_GIB = 2**30


class PredictedMemoryPruner:
    """Skips what is predicted not to fit.

    Args:
        memory_limit_bytes: device memory that one rank may use.
        host_memory_bytes: memory of the host, for what is offloaded to it.
        is_patient: skip only what does not fit even where the predictor is as wrong as it may be,
            for questions where hardly anything is expected to fit.
    """

    def __init__(
        self, memory_limit_bytes: int, *, host_memory_bytes: int, is_patient: bool = False
    ) -> None:
        self._limit_bytes = memory_limit_bytes
        self._host_memory_bytes = host_memory_bytes
        self._is_patient = is_patient

    def reason_to_skip(
        self, strategy: Strategy, prediction: Prediction, trials: Sequence[Trial]
    ) -> str | None:
        """Why the strategy cannot fit, in words; None where it might."""
        if prediction.host_memory_bytes > self._host_memory_bytes:
            return (
                f"offloading needs at least {prediction.host_memory_bytes / _GIB:.1f} GiB of host "
                f"memory, the host has {self._host_memory_bytes / _GIB:.1f} GiB"
            )
        if self._is_patient:
            need, words = prediction.peak_device_lower_bytes, "predicted to need at least"
        else:
            need, words = prediction.peak_device_bytes, "predicted to need"
        if need <= self._limit_bytes:
            return None
        reason = f"{words} {need / _GIB:.1f} GiB, the limit is {self._limit_bytes / _GIB:.1f} GiB"
        parts = prediction.breakdown_bytes
        if not parts:
            return reason
        largest = max(parts, key=parts.__getitem__)
        return f"{reason}; the largest part is {largest} with {parts[largest] / _GIB:.1f} GiB"


class DominancePruner:
    """Skips what needs at least as much memory as a trial that ran out of it."""

    def reason_to_skip(
        self, strategy: Strategy, prediction: Prediction, trials: Sequence[Trial]
    ) -> str | None:
        """Which trial shows that the strategy cannot fit, in words; None where none does."""
        for trial in trials:
            failure = trial.failure
            if failure is None or not failure.kind.is_out_of_memory:
                continue
            if failure.phase is Phase.INIT:
                if _holds_at_least_the_states_of(strategy, trial.strategy, failure):
                    return (
                        f"{_lesson(trial, failure)}, before any batch; "
                        "this holds at least the same states"
                    )
            elif _needs_at_least(strategy, trial.strategy, failure) and not _is_predicted_smaller(
                prediction, trial
            ):
                return (
                    f"{_lesson(trial, failure)} with micro-batch "
                    f"{trial.strategy.micro_batch_size}; this needs at least as much"
                )
        return None


def _lesson(trial: Trial, failure: Failure) -> str:
    kind = "host memory" if failure.kind is FailureKind.HOST_OUT_OF_MEMORY else "memory"
    where = f" in {failure.phase}" if failure.phase else ""
    return f"trial {trial.number} ran out of {kind}{where}"


def _holds_at_least_the_states_of(strategy: Strategy, failed: Strategy, failure: Failure) -> bool:
    """Whether weights, master weights and optimizer states are as large or larger.

    What is divided otherwise (ZeRO stage) or computed otherwise (precision, LoRA rank) is in no
    order.
    """
    if failure.kind is FailureKind.HOST_OUT_OF_MEMORY:
        # What one strategy offloads is what it needs of the host.
        is_offload_ordered = strategy.offload_optimizer == failed.offload_optimizer
    else:
        is_offload_ordered = (
            strategy.offload_optimizer is Offload.NONE or failed.offload_optimizer is Offload.CPU
        )
    return (
        is_offload_ordered
        and strategy.zero_stage == failed.zero_stage
        and strategy.precision == failed.precision
        and strategy.lora_rank == failed.lora_rank
        and _at_least(strategy.master_weights, failed.master_weights, MasterWeights.FP32)
        and _has_states_at_least(strategy, failed)
    )


def _has_states_at_least(strategy: Strategy, failed: Strategy) -> bool:
    """AdamW's moments are larger than their 8-bit form, be they fp32 or bf16."""
    if strategy.optimizer is Optimizer.ADAMW:
        return failed.optimizer in (Optimizer.ADAMW, Optimizer.ADAMW_8BIT)
    return strategy.optimizer == failed.optimizer


def _needs_at_least(strategy: Strategy, failed: Strategy, failure: Failure) -> bool:
    """Whether every ordered knob asks for as much memory or more, and all others are equal."""
    return (
        _holds_at_least_the_states_of(strategy, failed, failure)
        and strategy.micro_batch_size >= failed.micro_batch_size
        # Different intervals are in no order: one keeps more inputs, the other recomputes more.
        and _at_least(strategy.checkpoint_interval, failed.checkpoint_interval, 0)
        and _at_least(strategy.fused_kernels, failed.fused_kernels, False)
    )


def _at_least(value: object, other: object, greatest: object) -> bool:
    """Whether `value` needs as much as `other`, where only `greatest` is above all others."""
    return value in (other, greatest)


def _is_predicted_smaller(prediction: Prediction, trial: Trial) -> bool:
    """Whether the predictor says that the order is broken.

    A larger micro-batch leaves fewer micro-steps, and with a single one no gradients are held from
    one to the next, which may save more than the activations cost.
    """
    failed = trial.prediction
    return failed is not None and prediction.peak_memory_bytes < failed.peak_memory_bytes
