"""The short training that a trial is: a real DeepSpeed engine, a few steps, the clock."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from autotune.hardware import DeviceType
from autotune.trial import Phase, TrialSpec
from autotune.worker.engine import build_engine, optimizer_state_bytes
from autotune.worker.events import RankLog
from autotune.worker.memory import memory_meter
from autotune.worker.process_group import join
from autotune.worker.samples import micro_batch

__all__ = ["Training"]

_ENOUGH_S = 3.0
"""Timed steps end early once they took so long together, but never before two."""

_MICRO_STEPS_TO_WARM_UP = 4
"""An optimizer step of so many micro-batches warms kernels and allocator up by itself."""

_MAX_SKIPPED_STEPS = 10
"""fp16: more overflowing steps than this mean that the loss scale will not settle in a trial."""


class Training:
    """One rank's share of one trial.

    Args:
        spec: what to run.
        rank: which of its ranks this is.
        folder: the trial's folder; the ranks meet through a file in it.
        log: where phases and events go.
    """

    def __init__(self, spec: TrialSpec, rank: int, folder: Path, log: RankLog) -> None:
        self._started = time.perf_counter()
        self._spec = spec
        # Ranks that share their samples have neighbouring numbers.
        self._data_rank = rank // spec.strategy.model_parallel_size
        self._log = log
        self._device_type = DeviceType(os.environ["AUTOTUNE_DEVICE_TYPE"])
        self._device = join(
            folder, rank=rank, num_ranks=spec.num_ranks, device_type=self._device_type
        )
        self._meter = memory_meter(self._device_type)
        self._accumulation = spec.strategy.gradient_accumulation_steps(
            spec.workload.global_batch_size, spec.num_ranks
        )
        self._built = build_engine(spec, self._device)
        self._engine = self._built.engine

    def run(self) -> dict[str, Any]:
        """Train and measure; the fields of `Measurement` as this rank sees them."""
        setup_time_s = time.perf_counter() - self._started
        self._log.write("ready", setup_time_s=setup_time_s)
        spec = self._spec
        num_warmup = 1 if self._accumulation >= _MICRO_STEPS_TO_WARM_UP else spec.warmup_steps
        losses: list[float] = []
        step_times: list[float] = []
        retries_before = skipped = index = 0
        while len(step_times) < spec.timed_steps:
            if index == num_warmup:
                retries_before = self._meter.peaks().num_alloc_retries
            loss, seconds = self._optimizer_step(index)
            has_overflowed = self._engine.skipped_steps > skipped
            skipped = self._engine.skipped_steps
            is_timed = index >= num_warmup and not has_overflowed
            self._log.write("step", index=index, time_s=seconds, loss=loss, is_timed=is_timed)
            losses.append(loss)
            if is_timed:
                step_times.append(seconds)
            if len(step_times) >= 2 and sum(step_times) >= _ENOUGH_S:
                break
            if skipped > _MAX_SKIPPED_STEPS:
                raise FloatingPointError(
                    f"fp16 overflowed in {skipped} steps, the loss scale does not settle"
                )
            index += 1
        peaks = self._meter.peaks()
        return {
            "step_times_s": step_times,
            "losses": losses,
            "peak_allocated_bytes": peaks.allocated,
            "peak_reserved_bytes": peaks.reserved,
            "peak_device_bytes": peaks.device,
            "num_alloc_retries": peaks.num_alloc_retries - retries_before,
            "num_parameters": self._built.num_parameters,
            "num_trainable_parameters": self._built.num_trainable_parameters,
            "optimizer_state_bytes": optimizer_state_bytes(self._engine),
            "setup_time_s": setup_time_s,
            "skipped_steps": skipped,
        }

    def _optimizer_step(self, index: int) -> tuple[float, float]:
        """All micro-batches of one step: mean loss of this rank, seconds of the slowest."""
        batches = [
            micro_batch(self._spec, data_rank=self._data_rank, step=index, micro=micro).to(
                self._device
            )
            for micro in range(self._accumulation)
        ]
        losses = []
        self._synchronize()
        started = time.perf_counter()
        for batch in batches:
            self._log.enter(Phase.FORWARD)
            loss = self._engine(input_ids=batch, labels=batch, use_cache=False).loss
            self._log.enter(Phase.BACKWARD)
            self._engine.backward(loss)
            self._log.enter(Phase.STEP)
            self._engine.step()
            losses.append(loss.detach())
            del loss
        self._synchronize()
        seconds = torch.tensor(time.perf_counter() - started, device=self._device)
        # All ranks must agree on when to stop, so all keep the time of the slowest.
        dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
        self._meter.sample()
        return float(torch.stack(losses).float().mean()), float(seconds)

    def _synchronize(self) -> None:
        if self._device_type is DeviceType.CUDA:
            torch.cuda.synchronize()
