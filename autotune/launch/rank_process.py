"""The ranks of a trial as the launcher sees them: process, exit status, what they wrote.

Says which rank is to blame for a failure, and makes one measurement of all their results.
"""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from autotune.trials.measurement import SAMPLES, TOKENS
from autotune.trials.trial import Failure, FailureKind, Measurement, Outcome, Phase, TrialSpec

__all__ = [
    "ALL_RANKS",
    "NodeShare",
    "RankProcess",
    "RanksEnd",
    "failure_of",
    "measurement_of",
    "outcome_of",
    "reason_of",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeShare:
    """Which ranks of a trial run on one host, and how they meet those of other hosts."""

    first_rank: int = 0
    num_ranks: int | None = None
    """How many; all of the trial if left out."""
    address: str = ""
    """Address and port at which rank 0 listens for ranks of other hosts; empty on one host,
    where they meet through a file."""
    interface: str = ""
    """The network interface that this host reaches the others through."""

    def ranks_of(self, num_ranks: int) -> range:
        """The numbers of these ranks, of a trial with so many."""
        return range(self.first_rank, self.first_rank + (self.num_ranks or num_ranks))

    def environment(self, rank: int, num_ranks: int) -> dict[str, str]:
        """What the environment of one rank has beside the server's."""
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank - self.first_rank),
            "WORLD_SIZE": str(num_ranks),
        }
        if self.address:
            host, _, port = self.address.rpartition(":")
            environment |= {
                "AUTOTUNE_RENDEZVOUS": f"tcp://{self.address}",
                "MASTER_ADDR": host,
                "MASTER_PORT": port,
                "GLOO_SOCKET_IFNAME": self.interface,
                "NCCL_SOCKET_IFNAME": self.interface,
            }
        return environment


ALL_RANKS = NodeShare()
"""A whole trial on one host."""


@dataclass(slots=True)
class RankProcess:
    """What is known of one rank process."""

    number: int
    folder: Path
    pid: int = 0
    status: int | None = None
    """Exit status, negative for a signal; None while it runs."""
    result: dict[str, Any] | None = None
    failure: dict[str, Any] | None = None
    ended_at: float = math.inf
    _offset: int = field(default=0)

    @property
    def is_running(self) -> bool:
        """Whether its end has not been seen yet."""
        return self.status is None

    @property
    def has_failed(self) -> bool:
        """Whether it told of a failure, or ended without a result."""
        return self.failure is not None or (not self.is_running and self.result is None)

    def new_events(self) -> Iterator[dict[str, Any]]:
        """Whole lines that were written since the last look."""
        try:
            with (self.folder / f"rank{self.number}.jsonl").open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            event: dict[str, Any] = json.loads(line)
            if event["event"] == "result":
                self.result = event
            elif event["event"] == "failure":
                self.failure = event
            yield event

    def phase(self) -> Phase | None:
        """What it was doing last, as it wrote down itself."""
        try:
            return Phase((self.folder / f"rank{self.number}.phase").read_text().strip())
        except (OSError, ValueError):
            return None


@dataclass(frozen=True, kw_only=True, slots=True)
class RanksEnd:
    """How the ranks of one host ended."""

    ranks: tuple[RankProcess, ...]
    stopped: Failure | None = None
    """Why they were stopped from outside, if they were."""
    has_oom_kill: bool = False
    """Whether the host's kernel has killed a process for want of memory meanwhile."""
    is_disk_full: bool = False
    """Whether the disk that they offloaded to had no room left."""
    duration_s: float = 0.0

    @property
    def failure(self) -> Failure | None:
        """Why they came to no result; None where all did."""
        return self.stopped or failure_of(
            self.ranks, has_oom_kill=self.has_oom_kill, is_disk_full=self.is_disk_full
        )


def outcome_of(spec: TrialSpec, ends: Sequence[RanksEnd]) -> Outcome:
    """How a trial ended, whose ranks ran on one host or on several.

    Where those of several hosts failed, want of memory or disk explains the rest, and a rank that
    lost its partner explains nothing.
    """
    duration_s = max(end.duration_s for end in ends)
    failures = [end.failure for end in ends if end.failure is not None]
    if failures:

        def blame(failure: Failure) -> tuple[bool, bool]:
            has_lost_partner = failure.kind is FailureKind.COMMUNICATION
            return not failure.kind.is_out_of_room, has_lost_partner

        return Outcome(failure=min(failures, key=blame), duration_s=duration_s)
    ranks = [rank for end in ends for rank in end.ranks]
    first = ranks[0].result
    return Outcome(
        measurement=measurement_of(spec, ranks),
        reason=reason_of(ranks),
        duration_s=duration_s,
        findings=None if first is None else first.get("findings"),
    )


def failure_of(
    ranks: Sequence[RankProcess], *, has_oom_kill: bool, is_disk_full: bool = False
) -> Failure | None:
    """The failure of the rank that is to blame; None where all came to a result.

    The others fail because their partner is gone: so want of memory or disk explains a trial
    before a rank that died without a word, that before an exception, and the earliest exception
    before the rest.

    Args:
        ranks: all of the trial, ended or given up.
        has_oom_kill: whether the kernel has killed a process for want of memory meanwhile.
        is_disk_full: whether the disk that the trial offloads to has no room left.
    """
    failed = [rank for rank in ranks if rank.result is None]
    if not failed:
        return None

    def blame(pair: tuple[RankProcess, Failure]) -> tuple[bool, bool, float]:
        rank, failure = pair
        has_died = rank.failure is None and rank.status is not None
        at = rank.failure["at"] if rank.failure is not None else rank.ended_at
        return not failure.kind.is_out_of_room, not has_died, at

    return min(
        ((rank, _rank_failure(rank, has_oom_kill, is_disk_full)) for rank in failed), key=blame
    )[1]


def _rank_failure(rank: RankProcess, has_oom_kill: bool, is_disk_full: bool) -> Failure:
    if rank.failure is not None:
        return Failure(
            kind=FailureKind(rank.failure["kind"]),
            message=rank.failure["message"],
            phase=Phase(rank.failure["phase"]),
            rank=rank.number,
        )
    if rank.status is None:
        kind, message = FailureKind.COMMUNICATION, "the rank waited for a rank that had failed"
    elif rank.status == -signal.SIGKILL and has_oom_kill:
        kind, message = (
            FailureKind.HOST_OUT_OF_MEMORY,
            "the kernel killed the rank: host memory was full",
        )
    elif rank.status == -signal.SIGKILL:
        # No program does that to itself: somebody, or the machine, wanted it gone.
        kind, message = FailureKind.INTERRUPTED, "the rank was killed from outside (SIGKILL)"
    elif rank.status == -signal.SIGABRT and is_disk_full:
        # DeepSpeed's asynchronous I/O asserts in C++ that all of a file was written.
        kind, message = FailureKind.DISK_FULL, "the disk of --nvme-path was full"
    elif rank.status < 0:
        name = signal.Signals(-rank.status).name
        kind, message = FailureKind.CRASH, f"the rank died of {name}"
    else:
        kind, message = (
            FailureKind.CRASH,
            f"the rank exited with status {rank.status} without a result",
        )
    return Failure(kind=kind, message=message, phase=rank.phase(), rank=rank.number)


def measurement_of(spec: TrialSpec, ranks: Sequence[RankProcess]) -> Measurement:
    """One measurement of all ranks: the largest memory, the common times, the mean loss."""
    results = [rank.result for rank in ranks if rank.result is not None]
    step_times_s = tuple(results[0]["step_times_s"])
    losses = zip(*(result["losses"] for result in results), strict=True)

    # The user's own program tells what it fed; lengths of samples differ there.
    fed = results[0].get("fed")
    samples = float(spec.workload.global_batch_size if fed is None else fed["samples"])
    tokens = float(spec.workload.tokens_per_step if fed is None else fed["tokens"])
    counted = tokens or samples
    padded = None if fed is None or not tokens else fed["padded_tokens"] / median(step_times_s)

    def largest(name: str) -> int:
        return max(int(result[name]) for result in results)

    return Measurement(
        tokens_per_second=counted / median(step_times_s),
        step_times_s=step_times_s,
        losses=tuple(sum(step) / len(results) for step in losses),
        setup_time_s=max(float(result["setup_time_s"]) for result in results),
        peak_allocated_bytes=largest("peak_allocated_bytes"),
        peak_reserved_bytes=largest("peak_reserved_bytes"),
        peak_device_bytes=largest("peak_device_bytes"),
        host_memory_bytes=sum(int(result["host_memory_bytes"]) for result in results),
        num_alloc_retries=largest("num_alloc_retries"),
        num_parameters=largest("num_parameters"),
        num_trainable_parameters=largest("num_trainable_parameters"),
        optimizer_state_bytes=largest("optimizer_state_bytes"),
        share_run=float(results[0]["share_run"]),
        skipped_steps=largest("skipped_steps"),
        energy_j_per_token=_energy_j_per_token(results, counted),
        unit=TOKENS if tokens else SAMPLES,
        padded_tokens_per_second=padded,
        samples_per_second=samples / median(step_times_s),
        environment=results[0].get("environment", {}),
    )


def reason_of(ranks: Sequence[RankProcess]) -> str | None:
    """Why the ranks ended the trial early, as they agreed on; None where they did not."""
    reason: str | None = ranks[0].result["defeat"] if ranks[0].result is not None else None
    return reason


def _energy_j_per_token(results: Sequence[dict[str, Any]], tokens_per_step: float) -> float | None:
    """Over all ranks, each with a device of its own; None where one of them counts no energy."""
    energies_j = [result["energy_j"] for result in results]
    if None in energies_j:
        return None
    return float(sum(energies_j)) / (tokens_per_step * len(results[0]["step_times_s"]))
