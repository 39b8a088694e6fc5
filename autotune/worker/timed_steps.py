"""Decides which steps are timed, when they are enough, and when a trial is certain to be beaten.

Pure arithmetic on times that all ranks have in common, so that all come to the same end.
"""

from __future__ import annotations

from collections.abc import Sequence

from autotune.trials.interval import Interval, mean_interval
from autotune.trials.measurement import least_step_time_s
from autotune.trials.trial import TrialSpec

__all__ = ["TimedSteps", "WarmUp"]

_MAX_COMPILING_STEPS = 8
"""So many steps more at most, so that a model that is always compiled anew is measured as such."""

_LEAST_STEPS = 2
"""The scatter of fewer steps is unknown."""


class WarmUp:
    """The first steps, and then all up to one after the last that compiled.

    Args:
        num_steps: steps that are never timed.
    """

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._has_compiled = False

    def covers(self, index: int, *, has_compiled: bool) -> bool:
        """Whether a step that has run was part of it; asked of each step in turn."""
        is_compiling = has_compiled or self._has_compiled
        self._has_compiled = has_compiled
        is_bounded = index < self._num_steps + _MAX_COMPILING_STEPS
        return index < self._num_steps or (is_compiling and is_bounded)


class TimedSteps:
    """The timed steps of one trial so far.

    Args:
        spec: the trial; says how precise its step time has to be, and what it has to beat.
    """

    def __init__(self, spec: TrialSpec) -> None:
        self._spec = spec
        self._times_s: list[float] = []
        self._spent_s = 0.0

    @property
    def times_s(self) -> Sequence[float]:
        """Seconds of each, of the slowest rank."""
        return self._times_s

    def add(self, seconds: float, spent_s: float | None = None) -> None:
        """One more has run.

        Args:
            seconds: of the whole step.
            spent_s: what it took, where its time is composed from a part of it.
        """
        self._times_s.append(seconds)
        self._spent_s += seconds if spent_s is None else spent_s

    @property
    def step_time_s(self) -> Interval:
        """The interval of the mean optimizer step."""
        return mean_interval(self._times_s)

    @property
    def are_enough(self) -> bool:
        """Whether the mean is known well enough, or has cost enough."""
        if len(self._times_s) >= self._spec.timed_steps:
            return True
        if len(self._times_s) < _LEAST_STEPS:
            return False
        is_precise = self.step_time_s.relative_half_width < self._spec.relative_half_width
        return is_precise or self._spent_s >= self._spec.timed_s

    def defeat(self, peak_memory_bytes: int) -> str | None:
        """Which incumbent the trial cannot beat any more, in words; None where it still may.

        Memory only grows, and the throughput is taken at its upper bound: so what is beaten now
        would be beaten in the end too.

        Args:
            peak_memory_bytes: what the allocator of the worst rank has reserved at most so far.
        """
        if not self._times_s:
            return None
        fastest = self._spec.tokens_per_step / least_step_time_s(self._times_s)
        for incumbent in self._spec.incumbents:
            is_leaner = incumbent.peak_memory_bytes <= peak_memory_bytes
            if is_leaner and incumbent.tokens_per_second > fastest:
                return (
                    f"at best {fastest:,.0f} tokens/s; trial {incumbent.number} reached "
                    f"{incumbent.tokens_per_second:,.0f} with no more memory"
                )
        return None
