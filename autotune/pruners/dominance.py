"""Prunes strategies that need at least as much memory as a trial that ran out of it.

Does not know how strategies are proposed or run.
"""

from __future__ import annotations

from collections.abc import Sequence

from autotune.pruners.memory_order import holds_as_much, needs_as_much
from autotune.space.strategy import Strategy
from autotune.trials.trial import Failure, FailureKind, Phase, Prediction, Trial

__all__ = ["DominancePruner"]

_GIB = 2**30


class DominancePruner:
    """Skips a strategy that needs at least as much memory as a trial that ran out of it."""

    def reason_to_skip(
        self, strategy: Strategy, prediction: Prediction, trials: Sequence[Trial]
    ) -> str | None:
        """Which trial shows that the strategy cannot fit, in words; None if no trial does."""
        for trial in trials:
            failure = trial.failure
            if failure is None or not failure.kind.is_out_of_memory:
                continue
            of_host = failure.kind is FailureKind.HOST_OUT_OF_MEMORY
            if of_host and _offloads_as_much(strategy, prediction, trial):
                return (
                    f"{_cause(trial, failure)}; this strategy offloads at least as much, "
                    f"{prediction.host_memory_bytes / _GIB:.1f} GiB"
                )
            if failure.phase is Phase.INIT:
                if holds_as_much(strategy, trial.strategy, of_host=of_host):
                    return (
                        f"{_cause(trial, failure)}, before any batch; "
                        "this strategy holds at least the same states"
                    )
            elif needs_as_much(
                strategy, trial.strategy, of_host=of_host
            ) and not _is_predicted_smaller(prediction, trial):
                return (
                    f"{_cause(trial, failure)} with micro-batch "
                    f"{trial.strategy.micro_batch_size}; this strategy needs at least as much"
                )
        return None


def _cause(trial: Trial, failure: Failure) -> str:
    kind = "host" if failure.kind is FailureKind.HOST_OUT_OF_MEMORY else "device"
    where = f" in {failure.phase}" if failure.phase else ""
    return f"trial {trial.number} ran out of {kind} memory{where}"


def _offloads_as_much(strategy: Strategy, prediction: Prediction, trial: Trial) -> bool:
    """Whether it offloads the same in the same way, and by arithmetic no less of it.

    What the host holds is counted, not estimated, and batches and kernels hardly change it.
    """
    failed = trial.prediction
    ways = ("zero_stage", "offload_optimizer", "offload_param", "offload_checkpoints")
    return (
        failed is not None
        and 0 < failed.host_memory_bytes <= prediction.host_memory_bytes
        and all(getattr(strategy, way) == getattr(trial.strategy, way) for way in ways)
    )


def _is_predicted_smaller(prediction: Prediction, trial: Trial) -> bool:
    """Whether the predictor says that the order is broken.

    A larger micro-batch leaves fewer micro-steps, and with a single one no gradients are held from
    one to the next, which may save more than the activations cost.
    """
    failed = trial.prediction
    return failed is not None and prediction.peak_memory_bytes < failed.peak_memory_bytes
