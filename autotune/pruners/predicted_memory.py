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
"""Over the expected throughput, where the step time has no bounds: its usual error."""


class PredictedMemoryPruner:
    """Skips what is predicted not to fit, and what may not fit where it promises nothing.

    A strategy whose expected peak fits and whose upper bound does not is in doubt. It is skipped
    once a trial is known that is as fast as it may be, in no more memory than it must have:
    whatever can still reach the front is launched.

    Args:
        memory_limit_bytes: device memory that one rank may use.
        host_memory_bytes: memory of the host that the ranks may use.
        disk_bytes: free disk under --nvme-path, for what is offloaded to files there.
        is_patient: skip only what does not fit even where the predictor is as wrong as it may be,
            for questions where hardly anything is expected to fit.
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
        """Why the strategy cannot fit, in words; None where it might."""
        if no_room := self._no_room_on_host(prediction):
            return no_room
        if prediction.disk_bytes > self._disk_bytes:
            return (
                f"offloading to NVMe needs {prediction.disk_bytes / _GIB:.1f} GiB of disk, "
                f"--nvme-path has {self._disk_bytes / _GIB:.1f} GiB free"
            )
        if self._is_patient:
            need, words = prediction.peak_device_lower_bytes, "predicted to need at least"
        else:
            need, words = prediction.peak_device_bytes, "predicted to need"
        limit = f"the limit is {self._limit_bytes / _GIB:.1f} GiB"
        if need <= self._limit_bytes:
            return None if self._is_patient else self._doubt(prediction, trials)
        reason = f"{words} {need / _GIB:.1f} GiB, {limit}"
        if not prediction.breakdown_bytes:
            return reason
        rows = breakdown_rows(prediction)
        largest = max(rows, key=rows.__getitem__)
        return f"{reason}; the largest part is {largest} with {rows[largest] / _GIB:.1f} GiB"

    def _no_room_on_host(self, prediction: Prediction) -> str | None:
        """Why the host has too little memory, in words; None where it may have enough."""
        need, words = prediction.peak_host_bytes, "predicted to need"
        if self._is_patient:
            need, words = prediction.host_memory_lower_bytes, "predicted to need at least"
        if need <= self._host_memory_bytes:
            return None
        saving = ""
        if prediction.host_save_bytes and not self._is_patient:
            saving = f" ({prediction.host_save_bytes / _GIB:.1f} to save a checkpoint)"
        limit = f"the limit is {self._host_memory_bytes / _GIB:.1f} GiB"
        return f"{words} {need / _GIB:.1f} GiB of host memory{saving}, {limit}"

    def _doubt(self, prediction: Prediction, trials: Sequence[Trial]) -> str | None:
        """Why not to launch what is expected to fit, but may not; None where it is worth it."""
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
        in_doubt = next((side for side in sides if side[2] > side[3]), None)
        better = next((trial for trial in trials if _cannot_be_beaten(trial, prediction)), None)
        if in_doubt is None or better is None:
            return None
        of_what, expected, upper, limit = in_doubt
        return (
            f"predicted to need {expected / _GIB:.1f} GiB{of_what}, perhaps up to "
            f"{upper / _GIB:.1f} GiB, the limit is {limit / _GIB:.1f} GiB; trial {better.number} "
            "is as fast in no more memory, so it is not worth the risk (--force-pruned runs it "
            "all the same)"
        )


def _cannot_be_beaten(trial: Trial, prediction: Prediction) -> bool:
    """Whether a trial that fits is better than the prediction at its best."""
    bounds, measured = prediction.tokens_per_second_bounds, trial.measurement
    fastest = _FASTEST * prediction.tokens_per_second if bounds is None else bounds[1]
    return (
        measured is not None
        and trial.fits
        and measured.tokens_per_second >= fastest
        and measured.peak_memory_bytes <= prediction.peak_memory_lower_bytes
    )
