"""Prunes strategies that are not predicted to fit.

Does not know how strategies are proposed or run.
"""

from __future__ import annotations

from collections.abc import Sequence

from autotune.space.strategy import Strategy
from autotune.trials.breakdown import breakdown_rows
from autotune.trials.trial import Prediction, Trial

__all__ = ["PredictedMemoryPruner"]

_GIB = 2**30

_FASTEST = 1.1
"""The assumed upper bound of throughput over its expectation, if a prediction has no bounds."""


class PredictedMemoryPruner:
    """Skips a strategy that is not predicted to fit, or that may not fit and cannot win.

    A strategy is uncertain if its expected peak fits and its upper bound does not. It is skipped
    once a trial has at least its upper bound of throughput with at most its lower bound of memory.
    Any strategy that can still reach the front is launched.

    Args:
        memory_limit_bytes: device memory that one rank may use.
        host_memory_bytes: memory of the host that the ranks may use.
        disk_bytes: free disk under --nvme-path, for what is offloaded to files there.
        is_patient: skip a strategy only if its lower bound does not fit; for questions where
            hardly anything is expected to fit.
    """

    def __init__(
        self,
        memory_limit_bytes: int,
        *,
        host_memory_bytes: int,
        disk_bytes: int = 0,
        is_patient: bool = False,
    ) -> None:
        self._limit_bytes = memory_limit_bytes
        self._host_memory_bytes = host_memory_bytes
        self._disk_bytes = disk_bytes
        self._is_patient = is_patient

    def reason_to_skip(
        self, strategy: Strategy, prediction: Prediction, trials: Sequence[Trial]
    ) -> str | None:
        """Why the strategy cannot fit, in words; None if it might fit."""
        if no_room := self._no_room_on_host(prediction):
            return no_room
        if prediction.disk_bytes > self._disk_bytes:
            return (
                f"needs {prediction.disk_bytes / _GIB:.1f} GiB of disk to offload to; --nvme-path "
                f"has {self._disk_bytes / _GIB:.1f} GiB free"
            )
        if self._is_patient:
            need, words = prediction.peak_device_lower_bytes, "predicted to need at least"
        else:
            need, words = prediction.peak_device_bytes, "predicted to need"
        limit = f"the limit per device is {self._limit_bytes / _GIB:.1f} GiB"
        if need <= self._limit_bytes:
            return None if self._is_patient else self._uncertainty(prediction, trials)
        reason = f"{words} {need / _GIB:.1f} GiB; {limit}"
        if not prediction.breakdown_bytes:
            return reason
        rows = breakdown_rows(prediction)
        largest = max(rows, key=rows.__getitem__)
        return f"{reason}; largest part: {largest}, {rows[largest] / _GIB:.1f} GiB"

    def _no_room_on_host(self, prediction: Prediction) -> str | None:
        """Why the host has too little memory, in words; None if it may have enough."""
        need, words = prediction.peak_host_bytes, "predicted to need"
        if self._is_patient:
            need, words = prediction.host_memory_lower_bytes, "predicted to need at least"
        if need <= self._host_memory_bytes:
            return None
        saving = ""
        if prediction.host_save_bytes and not self._is_patient:
            saving = f" ({prediction.host_save_bytes / _GIB:.1f} to save a checkpoint)"
        limit = f"the limit is {self._host_memory_bytes / _GIB:.1f} GiB"
        return f"{words} {need / _GIB:.1f} GiB of host memory{saving}; {limit}"

    def _uncertainty(self, prediction: Prediction, trials: Sequence[Trial]) -> str | None:
        """Why a strategy that may not fit is not worth a launch, in words; None if it is."""
        sides = (
            (
                "",
                prediction.peak_device_bytes,
                prediction.peak_device_upper_bytes,
                self._limit_bytes,
            ),
            (
                " of host memory",
                prediction.peak_host_bytes,
                prediction.peak_host_upper_bytes,
                self._host_memory_bytes,
            ),
        )
        uncertain = next((side for side in sides if side[2] > side[3]), None)
        better = next((trial for trial in trials if _cannot_be_beaten(trial, prediction)), None)
        if uncertain is None or better is None:
            return None
        of_what, expected, upper, limit = uncertain
        most = f"at most {upper / _GIB:.1f} GiB"
        return (
            f"predicted to need {expected / _GIB:.1f} GiB{of_what}, {most}; the limit is "
            f"{limit / _GIB:.1f} GiB; trial {better.number} is as fast with no more "
            "memory (launch it anyway with --force-pruned)"
        )


def _cannot_be_beaten(trial: Trial, prediction: Prediction) -> bool:
    """Whether a trial that fits is better than the bounds of a prediction."""
    bounds, measured = prediction.tokens_per_second_bounds, trial.measurement
    fastest = _FASTEST * prediction.tokens_per_second if bounds is None else bounds[1]
    return (
        measured is not None
        and trial.fits
        and measured.tokens_per_second >= fastest
        and measured.peak_memory_bytes <= prediction.peak_memory_lower_bytes
    )
