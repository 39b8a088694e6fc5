"""The short training of a trial: a real DeepSpeed engine, a few steps, the clock."""

from __future__ import annotations

import operator
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from autotune.machine.hardware import DeviceType
from autotune.machine.settings import settings_in
from autotune.techniques.compilation import CompilationCounter, compile_in_this_process
from autotune.techniques.parallel_layout import parallel_coordinates
from autotune.techniques.sequence_parallel import group_loss, shard_tokens
from autotune.trials.trial import Phase, TrialSpec
from autotune.worker.energy import energy_meter
from autotune.worker.engine import build_engine, optimizer_state_bytes
from autotune.worker.events import RankLog
from autotune.worker.memory import memory_meter
from autotune.worker.natural_batches import FedTokens, NaturalBatches
from autotune.worker.process_group import join
from autotune.worker.samples import micro_batch
from autotune.worker.stepper import stepper
from autotune.worker.timed_steps import TimedSteps, WarmUp

__all__ = ["Training"]

_MAX_SKIPPED_STEPS = 10
"""fp16: more overflowing steps than this mean that the loss scale will not settle in a trial."""


_EVALUATED = 8
"""Samples of an evaluation pass at most: transformers' default batch for evaluation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Step:
    """What one optimizer step showed."""

    loss: float
    """Mean over this rank's samples."""
    seconds: float
    """Seconds of the slowest rank for all micro-batches, run or not."""
    spent_s: float
    """What it took to run those that were."""
    joules: float | None
    """That this rank's device used; None where nothing counts it."""
    has_compiled: bool
    """Whether a rank compiled something."""
    peak_reserved_bytes: int
    """So far, of the rank that needed most."""


class Training:
    """One rank's part of one trial.

    Args:
        spec: what to run.
        rank: which of its ranks this is.
        folder: the trial's folder; the ranks meet through a file in it.
        log: where phases and events go.
    """

    def __init__(self, spec: TrialSpec, rank: int, folder: Path, log: RankLog) -> None:
        self._started = time.perf_counter()
        self._whole_spec = spec
        self._coordinates = parallel_coordinates(
            spec.strategy, rank=rank, num_ranks=spec.num_ranks
        )
        self._log = log
        self._device_type = DeviceType(os.environ["AUTOTUNE_DEVICE_TYPE"])
        self._device = join(
            folder, rank=rank, num_ranks=spec.num_ranks, device_type=self._device_type
        )
        log.write("joined")
        self._meter = memory_meter(self._device_type)
        self._energy = energy_meter(self._device)
        compile_in_this_process()
        self._compilations = CompilationCounter()
        self._composition = spec.composition
        # Short steps are whole ones of a smaller batch to the engine.
        self._spec = spec = replace(spec, workload=self._composition.workload(spec.workload))
        self._built = build_engine(spec, self._device, on_model=lambda: log.write("model"))
        self._engine = self._built.engine
        self._stepper = stepper(self._engine, log)
        self._natural = (
            None
            if spec.workload.lengths is None
            else NaturalBatches(spec, data_rank=self._coordinates.data, device=self._device)
        )

    def run(self) -> dict[str, Any]:
        """Train and measure; the fields of `Measurement` as this rank sees them."""
        setup_time_s = time.perf_counter() - self._started
        self._log.write("ready", setup_time_s=setup_time_s)
        warm_up = WarmUp(self._whole_spec.num_warm_up_steps)
        losses: list[float] = []
        timed = TimedSteps(self._whole_spec)
        defeat: str | None = None
        energies: list[float | None] = []
        fed: list[FedTokens] = []
        retries_before = skipped = index = 0
        while not timed.are_enough and defeat is None:
            if not timed.times_s:
                retries_before = self._meter.peaks().num_alloc_retries
            step = self._optimizer_step(index)
            is_warming_up = warm_up.covers(index, has_compiled=step.has_compiled)
            has_overflowed = self._engine.skipped_steps > skipped
            skipped = self._engine.skipped_steps
            is_timed = not has_overflowed and not is_warming_up
            self._log.write(
                "step", index=index, time_s=step.seconds, loss=step.loss, is_timed=is_timed
            )
            losses.append(step.loss)
            if is_timed:
                timed.add(step.seconds, spent_s=step.spent_s)
                energies.append(step.joules)
                if self._natural is not None:
                    fed.append(self._natural.fed(index))
                defeat = timed.defeat(step.peak_reserved_bytes)
            if skipped > _MAX_SKIPPED_STEPS:
                raise FloatingPointError(
                    f"fp16 overflowed in {skipped} steps: the loss scale does not converge"
                )
            index += 1
        retries = self._meter.peaks().num_alloc_retries - retries_before
        if defeat is None:
            self._step_on_longest()
            self._evaluate()
        peaks = self._meter.peaks()
        return {
            "defeat": defeat,
            "step_times_s": list(timed.times_s),
            "losses": losses,
            "energy_j": _total(energies),
            "peak_allocated_bytes": peaks.allocated,
            "peak_reserved_bytes": peaks.reserved,
            "peak_device_bytes": peaks.device,
            "host_memory_bytes": self._meter.held_on_host(),
            "num_alloc_retries": retries,
            "fed": self._fed(fed),
            "num_parameters": self._built.num_parameters,
            "num_trainable_parameters": self._built.num_trainable_parameters,
            "optimizer_state_bytes": optimizer_state_bytes(self._engine),
            "share_run": self._composition.share_run,
            "setup_time_s": setup_time_s,
            "skipped_steps": skipped,
            "environment": settings_in(os.environ),
        }

    def _fed(self, steps: Sequence[FedTokens]) -> dict[str, float] | None:
        """What the timed steps fed in the mean, over all ranks; None where samples are alike."""
        if not steps:
            return None
        return {
            "samples": float(self._spec.workload.global_batch_size),
            "tokens": sum(each.real for each in steps) / len(steps),
            "padded_tokens": sum(each.padded for each in steps) / len(steps),
        }

    def _step_on_longest(self) -> None:
        """One more step on the longest samples that a micro-batch can draw, for its peak.

        What fits must fit hours in, too. It comes last, so that it changes no loss.
        """
        if self._natural is None:
            return
        longest = self._shard(self._natural.longest())
        self._stepper.step([dict(longest) for _ in range(self._composition.num_run)])
        self._synchronize()

    def _evaluate(self) -> None:
        """A forward without gradients on the longest samples, as a user's evaluation runs them.

        Fused losses compute all logits there. Evaluation of a divided sample is left to users.
        """
        strategy = self._spec.strategy
        is_divided = strategy.pipeline_parallel_size * strategy.sequence_parallel_size > 1
        if self._natural is None or not self._whole_spec.evaluates or is_divided:
            return
        self._log.enter(Phase.FORWARD)
        self._engine.eval()
        with torch.no_grad():
            self._engine(**self._natural.longest(_EVALUATED), use_cache=False)
        self._engine.train()
        self._synchronize()

    def _optimizer_step(self, index: int) -> _Step:
        """All micro-batches of one step that are run."""
        batches = [self._inputs(index, micro) for micro in range(self._composition.num_run)]
        num_compilations = self._compilations.num_compilations
        self._synchronize()
        joules_before = self._energy.joules()
        parts, parts_s, losses_of_rank = self._composition.parts(batches), [], []
        for part in parts:
            started = time.perf_counter()
            losses_of_rank.append(self._stepper.step(part))
            self._synchronize()
            parts_s.append(time.perf_counter() - started)
        joules = self._energy.joules()
        num_compilations = self._compilations.num_compilations - num_compilations
        # All ranks must agree on when to stop, so all keep what the worst of them has seen.
        worst = torch.tensor(
            [num_compilations, self._meter.peaks().reserved, *parts_s],
            device=self._device,
            dtype=torch.float64,
        )
        dist.all_reduce(worst, op=dist.ReduceOp.MAX)
        compilations, reserved, *parts_s = worst.tolist()
        seconds, spent_s = self._composition.step_time_s(parts_s), sum(parts_s)
        used = None if joules is None or joules_before is None else joules - joules_before
        losses = [float(group_loss(loss, self._spec.strategy)) for loss in losses_of_rank]
        return _Step(
            loss=sum(map(operator.mul, losses, map(len, parts))) / len(batches),
            seconds=seconds,
            spent_s=spent_s,
            # At the power of what was run: the counter is too slow to tell its parts.
            joules=None if used is None else used * seconds / spent_s,
            has_compiled=bool(compilations),
            peak_reserved_bytes=int(reserved),
        )

    def _inputs(self, index: int, micro: int) -> dict[str, Any]:
        """The model's arguments for one micro-batch: this rank's part of its samples."""
        if self._natural is not None:
            return self._shard(self._natural.inputs(index, micro))
        ids = micro_batch(self._spec, data_rank=self._coordinates.data, step=index, micro=micro)
        ids = ids.to(self._device)
        if self._spec.strategy.sequence_parallel_size == 1:
            return {"input_ids": ids, "labels": ids}
        return shard_tokens(ids, ids, self._spec.strategy, shard=self._coordinates.sequence)

    def _shard(self, batch: dict[str, Any]) -> dict[str, Any]:
        """This rank's part of a batch with lengths of its own."""
        strategy = self._spec.strategy
        if strategy.sequence_parallel_size == 1:
            return batch
        return shard_tokens(
            batch["input_ids"],
            batch["labels"],
            strategy,
            shard=self._coordinates.sequence,
            num_labels=batch["num_items_in_batch"],
        )

    def _synchronize(self) -> None:
        if self._device_type is DeviceType.CUDA:
            torch.cuda.synchronize()


def _total(energies: Sequence[float | None]) -> float | None:
    known = [joules for joules in energies if joules is not None]
    return sum(known) if len(known) == len(energies) else None
