"""The record of a trial: its strategy, its prediction and its outcome.

Does not know who proposes, runs or stores trials.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import fmean
from typing import Any

from autotune.question.limits import Limits
from autotune.space.strategy import Strategy
from autotune.trials.interval import Interval, mean_interval
from autotune.trials.measurement import SLOWEST_FIRST_STEP, TOKENS, Measurement
from autotune.trials.trial_spec import CONFIRMING_S, Incumbent, TrialSpec

__all__ = [
    "CONFIRMING_S",
    "MEMORY",
    "METRICS",
    "THROUGHPUT",
    "Direction",
    "Failure",
    "FailureKind",
    "Incumbent",
    "Measurement",
    "Metric",
    "Outcome",
    "Phase",
    "Prediction",
    "Trial",
    "TrialSpec",
    "TrialState",
]


_BETWEEN_RUNS = 0.03
"""Two runs of the same work on one H100 were seen so far apart, as a fraction."""


class TrialState(StrEnum):
    """How far a trial is; all but RUNNING are final."""

    RUNNING = "running"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    """Stopped from outside, which says nothing of its strategy: it is run again."""


class Phase(StrEnum):
    """What a rank was doing."""

    INIT = "init"
    FORWARD = "forward"
    BACKWARD = "backward"
    STEP = "step"


class FailureKind(StrEnum):
    """Why a trial failed, from exception types, exit status and signals."""

    DEVICE_OUT_OF_MEMORY = "device_out_of_memory"
    HOST_OUT_OF_MEMORY = "host_out_of_memory"
    DISK_FULL = "disk_full"
    """No room was left on the disk that states are offloaded to."""
    TIMEOUT = "timeout"
    INVALID_CONFIGURATION = "invalid_configuration"
    COMMUNICATION = "communication"
    LOST_NODE = "lost_node"
    CRASH = "crash"
    INTERRUPTED = "interrupted"
    """Stopped from outside: by Ctrl-C, by the end of the budget, or with the search itself."""

    @property
    def is_out_of_memory(self) -> bool:
        """Whether it teaches something about memory."""
        return self in (FailureKind.DEVICE_OUT_OF_MEMORY, FailureKind.HOST_OUT_OF_MEMORY)

    @property
    def is_out_of_room(self) -> bool:
        """Whether device, host or disk had too little room: it explains what other ranks saw."""
        return self.is_out_of_memory or self is FailureKind.DISK_FULL

    @property
    def says_nothing_about_the_strategy(self) -> bool:
        """Whether the same strategy is worth another try, since the machinery failed."""
        return self in (FailureKind.COMMUNICATION, FailureKind.LOST_NODE, FailureKind.INTERRUPTED)


class Direction(StrEnum):
    """Optuna's names for which way is better."""

    MAXIMIZE = "maximize"
    MINIMIZE = "minimize"


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """A measured quantity that strategies are compared by, and which way is better."""

    name: str
    direction: Direction
    unit: str


THROUGHPUT = Metric(name="tokens_per_second", direction=Direction.MAXIMIZE, unit="tokens/s")
MEMORY = Metric(name="peak_memory_bytes", direction=Direction.MINIMIZE, unit="bytes")
METRICS = (THROUGHPUT, MEMORY)
"""The metrics of a study, in the order of their values in the storage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What a strategy is expected to need, before it runs."""

    peak_memory_bytes: int
    """Expected peak of what the allocator reserves on one device, worst rank."""
    peak_memory_lower_bytes: int
    """It is not expected to need less than this."""
    peak_memory_upper_bytes: int
    """It is not expected to need more than this."""
    step_time_s: float
    """Seconds of one optimizer step, all micro-batches of it."""
    tokens_per_second: float
    """Over all ranks."""
    peak_allocated_bytes: int = 0
    """Expected peak of live tensors on one device, worst rank: without the allocator's slack."""
    step_time_lower_s: float | None = None
    """A step is not expected to take less than this; None where no bound is known."""
    step_time_upper_s: float | None = None
    """A step is not expected to take more than this; None where no bound is known."""
    is_time_known: bool = True
    """Whether the step time rests on rates of a data sheet, or measured ones, or on trials; what
    rests on a guess of the rates is not shown."""
    step_parts_s: Mapping[str, float] = field(default_factory=dict)
    """What the step time is made of, in seconds; sums up to `step_time_s`."""
    device_overhead_bytes: int = 0
    """What the device holds beside the allocator's pool: the GPU context and its libraries."""
    host_memory_bytes: int = 0
    """Expected in training, of all ranks of one host together; 0 where nothing is offloaded."""
    host_memory_lower_bytes: int = 0
    """Training is not expected to need less of the host than this."""
    host_memory_upper_bytes: int = 0
    """Training and saving are not expected to need more of the host than this."""
    host_save_bytes: int = 0
    """What saving a checkpoint adds to it for a moment."""
    disk_bytes: int = 0
    """Files of what is offloaded to NVMe, of all ranks of one host together."""
    moment: str = ""
    """What is going on when memory peaks: initialisation, loss, recomputation of a layer,
    backward, first gradient (on its way to the host), optimizer step, checkpoint save."""
    breakdown_bytes: Mapping[str, int] = field(default_factory=dict)
    """What the peak is made of."""
    is_memory_known: bool = True
    """Whether the predictor knows the model at all; figures that stand for nothing are not
    shown."""
    is_simulated: bool = False
    """Whether the allocator was run for the peak; a formula stands for it otherwise."""

    @property
    def tokens_per_second_bounds(self) -> tuple[float, float] | None:
        """Between what throughputs it is expected; None where the step time has no bounds."""
        if self.step_time_lower_s is None or self.step_time_upper_s is None:
            return None
        tokens = self.tokens_per_second * self.step_time_s
        return tokens / self.step_time_upper_s, tokens / self.step_time_lower_s

    @property
    def peak_device_bytes(self) -> int:
        """Expected peak of the whole device, which is what the memory limit is about."""
        return self.peak_memory_bytes + self.device_overhead_bytes

    @property
    def peak_device_lower_bytes(self) -> int:
        """The whole device is not expected to need less than this."""
        return self.peak_memory_lower_bytes + self.device_overhead_bytes

    @property
    def peak_device_upper_bytes(self) -> int:
        """The whole device is not expected to need more than this."""
        return self.peak_memory_upper_bytes + self.device_overhead_bytes

    @property
    def peak_host_bytes(self) -> int:
        """Expected peak of one host, while a checkpoint is saved."""
        return self.host_memory_bytes + self.host_save_bytes

    @property
    def peak_host_upper_bytes(self) -> int:
        """One host is not expected to need more than this."""
        return max(self.host_memory_upper_bytes, self.peak_host_bytes)

    def missing_bytes(self, limits: Limits) -> int:
        """What it is expected to need beyond these limits, of device, host and disk together."""
        device = max(0, self.peak_device_bytes - limits.device_bytes)
        disk = max(0, self.disk_bytes - limits.disk_bytes)
        return device + max(0, self.peak_host_bytes - limits.host_bytes) + disk

    def might_fit(self, limits: Limits) -> bool:
        """Whether it fits into these limits if the predictor is as wrong as it may be."""
        return (
            self.peak_device_lower_bytes <= limits.device_bytes
            and self.host_memory_lower_bytes <= limits.host_bytes
            and self.disk_bytes <= limits.disk_bytes
        )

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Prediction:
        """Read back what `dataclasses.asdict` gave; an earlier one has no bounds of the host."""
        known = {"host_memory_lower_bytes": record.get("host_memory_bytes", 0)}
        return cls(**(known | dict(record)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why a trial came to no measurement."""

    kind: FailureKind
    message: str
    """One sentence; the whole traceback is in the trial's folder."""
    phase: Phase | None = None
    rank: int | None = None
    """The rank that failed first."""

    @property
    def state(self) -> TrialState:
        """The final state of a trial that ended so."""
        is_interrupted = self.kind is FailureKind.INTERRUPTED
        return TrialState.INTERRUPTED if is_interrupted else TrialState.FAILED

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Failure:
        """Read back what `dataclasses.asdict` gave, through JSON or not."""
        phase = record.get("phase")
        return cls(
            kind=FailureKind(record["kind"]),
            message=record["message"],
            phase=Phase(phase) if phase else None,
            rank=record.get("rank"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How running one trial ended: with a measurement, a failure or a reason."""

    measurement: Measurement | None = None
    """What it showed; with a reason too, up to the moment at which it was stopped."""
    failure: Failure | None = None
    reason: str | None = None
    """Why it was stopped during its run, in words, where a pruner did so."""
    duration_s: float = 0.0
    findings: Mapping[str, Any] | None = None
    """What the first run of the user's own command has shown of the question."""

    @property
    def state(self) -> TrialState:
        """The final state that this outcome gives a trial."""
        if self.failure is not None:
            return self.failure.state
        return TrialState.PRUNED if self.reason is not None else TrialState.COMPLETE

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Outcome:
        """Read back what `dataclasses.asdict` gave, through JSON or not; what lacks is None."""
        measurement, failure = record.get("measurement"), record.get("failure")
        return cls(
            measurement=Measurement.from_dict(measurement) if measurement else None,
            failure=Failure.from_dict(failure) if failure else None,
            reason=record.get("reason"),
            duration_s=record.get("duration_s", 0.0),
            findings=record.get("findings"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One strategy of a study and all that is known of it."""

    number: int
    strategy: Strategy
    state: TrialState
    prediction: Prediction | None = None
    measurement: Measurement | None = None
    """What was measured; of a trial that was pruned while it ran, up to that moment."""
    failure: Failure | None = None
    reason: str | None = None
    """Why it was pruned, in words."""
    duration_s: float = 0.0
    """Wall time of its run; 0 where it was never launched."""
    memory_limit_bytes: int = 0
    """Device memory it may use: the device's, less the headroom."""
    is_forced: bool = False
    """Whether it was launched although it had been pruned by its prediction."""
    reused_from: str | None = None
    """The trial of an earlier study that measured it, in words; None where it was run here."""
    confirms: int | None = None
    """The trial whose strategy it runs once more, and longer; None where it is one of its own."""
    confirmations: tuple[Measurement, ...] = ()
    """What later runs of the same strategy showed, oldest first."""
    has_failed_again: bool = False
    """Whether a later run of the same strategy failed for a reason of its own."""

    @property
    def throughput(self) -> Interval | None:
        """Tokens per second with their 95 % interval; None where nothing was measured.

        Over the confirming runs where there are any, for a trial is chosen to be confirmed because
        its own run was fast. Over the steps of a run where there is but one. Wider by what other
        work on the machine may have cost.
        """
        if len(self.confirmations) > 1:
            found = mean_interval([run.tokens_per_second for run in self.confirmations])
            return found.widened(fmean(run.disturbance for run in self.confirmations))
        run = self.confirmations[0] if self.confirmations else self.measurement
        return None if run is None else run.throughput

    @property
    def tokens_per_second(self) -> float:
        """The mean throughput; 0 where nothing was measured."""
        if self.confirmations:
            return fmean(run.tokens_per_second for run in self.confirmations)
        return self.measurement.tokens_per_second if self.measurement else 0.0

    @property
    def least_tokens_per_second(self) -> float:
        """What more runs of it are not expected to fall below: others are given up against this.

        Steps of one run scatter less than runs do, so of one run the scatter between runs counts
        too. Few steps that differ leave a wide interval: two thirds of the mean are taken to be
        sure, as of a mean step by its first.
        """
        throughput = self.throughput
        if throughput is None:
            return 0.0
        relative = throughput.relative_half_width
        if len(self.confirmations) < 2:
            relative = math.hypot(relative, _BETWEEN_RUNS)
        return throughput.mean * max(1 / SLOWEST_FIRST_STEP, 1 - relative)

    @property
    def peak_memory_bytes(self) -> int:
        """What the allocator held at most in any of its runs; 0 where nothing was measured."""
        return max((run.peak_memory_bytes for run in self._runs), default=0)

    @property
    def is_confirmed(self) -> bool:
        """Whether its strategy was run again."""
        return bool(self.confirmations)

    @property
    def _runs(self) -> tuple[Measurement, ...]:
        return () if self.measurement is None else (self.measurement, *self.confirmations)

    @property
    def energy_j_per_token(self) -> float | None:
        """What was measured; None where it was not."""
        return self.measurement.energy_j_per_token if self.measurement else None

    @property
    def unit(self) -> str:
        """What its throughput counts."""
        return TOKENS if self.measurement is None else self.measurement.unit

    @property
    def was_launched(self) -> bool:
        """Whether processes were started for it."""
        return self.duration_s > 0

    @property
    def ran_out_of_memory(self) -> bool:
        """Whether it failed for want of memory."""
        return self.failure is not None and self.failure.kind.is_out_of_memory

    @property
    def fits(self) -> bool:
        """Whether it ran to its end, within the memory that it may use."""
        return self.state is TrialState.COMPLETE and self.is_within_memory

    @property
    def is_within_memory(self) -> bool:
        """Whether it was measured, within the memory limit, without an allocator that thrashes.

        In every run of its strategy.
        """
        if self.measurement is None or self.has_failed_again:
            return False
        for run in self._runs:
            if run.peak_device_bytes > self.memory_limit_bytes or run.num_alloc_retries:
                return False
        return True

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values, for `--json` and the export."""
        return {
            "number": self.number,
            "state": str(self.state),
            "strategy": self.strategy.to_dict(),
            "prediction": _shallow(self.prediction) if self.prediction else None,
            "measurement": _shallow(self.measurement) if self.measurement else None,
            "failure": _shallow(self.failure) if self.failure else None,
            "reason": self.reason,
            "duration_s": self.duration_s,
            "fits": self.fits,
            "is_forced": self.is_forced,
            "reused_from": self.reused_from,
            "throughput": _shallow(self.throughput) if self.throughput else None,
            "confirmations": [_shallow(run) for run in self.confirmations],
            "has_failed_again": self.has_failed_again,
        }


def _shallow(record: Any) -> dict[str, Any]:
    """The fields of a dataclass, as `asdict` has them of one that holds no other dataclass.

    `asdict` copies every value, which takes half of the time to report thousands of trials.
    """
    return {name: getattr(record, name) for name in type(record).__dataclass_fields__}
