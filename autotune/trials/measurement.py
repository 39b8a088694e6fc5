"""The measurement of one run of a strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Any

from autotune.trials.interval import Interval, mean_interval

__all__ = [
    "RUN_TO_RUN_DEVIATION",
    "SAMPLES",
    "SLOWEST_FIRST_STEP",
    "TOKENS",
    "Measurement",
    "least_step_time_s",
]

TOKENS, SAMPLES = "tokens", "samples"
"""What throughput may count."""

RUN_TO_RUN_DEVIATION = 0.015
"""Deviation of the logarithm of a trial's step time about that of its strategy, beside the scatter
of its steps: two runs of the same work on one H100 were seen 3 % apart."""

SLOWEST_FIRST_STEP = 1.5
"""A first timed step takes at most so many times the mean. Of the 186 trials recorded on one H100
in `results/` the largest ratio is 1.12; cores that others use too scatter more."""


def least_step_time_s(step_times_s: Sequence[float]) -> float:
    """The lower bound of the mean step: one step gives one too, two that differ a lot do not."""
    return max(step_times_s[0] / SLOWEST_FIRST_STEP, mean_interval(step_times_s).lower)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """What one finished trial showed. Memory is of the rank that needed most."""

    tokens_per_second: float
    """Wall-clock training throughput over all ranks at the strategy's accumulation: tokens that
    are no padding, or samples where `unit` says so."""
    step_times_s: tuple[float, ...]
    """Wall time of each timed optimizer step, slowest rank; composed where `share_run` is less
    than 1."""
    peak_allocated_bytes: int
    """Peak of live tensors; on the CPU growth of the resident set since the fork."""
    peak_reserved_bytes: int
    """Peak of the allocator's pool; on the CPU as `peak_allocated_bytes`."""
    peak_device_bytes: int
    """Peak of the whole device as NVML sees it; on the CPU the peak resident set."""
    host_memory_bytes: int = 0
    """What all ranks together held of their hosts' memory in the end and not at their start: what
    is offloaded, and some of the context; 0 on the CPU, where it is the peaks above."""
    num_alloc_retries: int = 0
    """Times the allocator had to flush its cache during timed steps: it thrashes."""
    losses: tuple[float, ...] = ()
    """Mean loss of each optimizer step, warm-up included, over all ranks."""
    num_parameters: int = 0
    num_trainable_parameters: int = 0
    optimizer_state_bytes: int = 0
    """What the optimizer keeps on one rank beside the weights, wherever it keeps it."""
    setup_time_s: float = 0.0
    """From the fork to the first step: context, process group, model, engine."""
    share_run: float = 1.0
    """Share of each optimizer step's micro-batches that was run; `losses` are of these."""
    skipped_steps: int = 0
    """Optimizer steps skipped on fp16 overflow; never timed."""
    disturbance: float = 0.0
    """What other work on the machine took meanwhile, as a fraction of what the ranks need of its
    cores, or kept a GPU busy: up to so much faster it may be alone."""
    others_device_bytes: int = 0
    """What processes of others held of one device at most, as far as NVML tells them apart;
    `peak_device_bytes` counts it too."""
    energy_j_per_token: float | None = None
    """What all devices used in the timed steps; None where a device counts no energy."""
    unit: str = TOKENS
    """What throughput counts: `tokens`, or `samples` of a program that feeds no tokens."""
    padded_tokens_per_second: float | None = None
    """With padding; None where nothing tells padding apart."""
    samples_per_second: float | None = None
    """None where an earlier version measured."""
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)
    """What rank 0 had in its environment that changes speed or memory (`machine/settings.py`);
    empty where an earlier version measured."""

    @property
    def step_time_s(self) -> float:
        """Median of the timed optimizer steps."""
        return median(self.step_times_s)

    @property
    def throughput(self) -> Interval:
        """Tokens per second; the interval is that of the mean step time, and of disturbance."""
        scatter = mean_interval(self.step_times_s).relative_half_width
        speed = self.tokens_per_second
        return Interval(mean=speed, half_width=scatter * speed).widened(self.disturbance)

    @property
    def most_tokens_per_second(self) -> float:
        """What it may come to at best, alone on the machine."""
        least_s = least_step_time_s(self.step_times_s)
        fastest = self.tokens_per_second * mean(self.step_times_s) / least_s
        return fastest * (1 + self.disturbance)

    @property
    def peak_memory_bytes(self) -> int:
        """The metric of memory: what the allocator held at most."""
        return self.peak_reserved_bytes

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Measurement:
        """Read back what `dataclasses.asdict` gave, through JSON or not."""
        values = dict(record)
        values["step_times_s"] = tuple(values["step_times_s"])
        values["losses"] = tuple(values["losses"])
        return cls(**values)
