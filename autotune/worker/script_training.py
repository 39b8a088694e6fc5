"""A trial of the user's own command: the program runs as `__main__`, its steps are timed.

The run ends itself, from within the program's optimizer step, when enough is known.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from autotune.knob_values import Batching
from autotune.machine.hardware import DeviceType
from autotune.machine.settings import settings_in
from autotune.script.deepspeed_calls import DeepSpeedCalls
from autotune.script.execution import check_is_here, execute
from autotune.script.fed_batches import FedBatches, StepFigures
from autotune.script.findings import findings_of
from autotune.script.steering import Steering
from autotune.script.trainers import steer_trainers
from autotune.space.deepspeed_config import deepspeed_config
from autotune.techniques.compilation import CompilationCounter, compile_in_this_process
from autotune.techniques.parameter_counts import count, count_trainable
from autotune.trials.composition import Composition
from autotune.trials.trial import Phase, TrialSpec
from autotune.worker.energy import energy_meter
from autotune.worker.engine import optimizer_state_bytes
from autotune.worker.events import RankLog
from autotune.worker.memory import memory_meter
from autotune.worker.process_group import join_when_asked
from autotune.worker.script_errors import EndedEarlyError, IgnoredBatchError, NoEngineError
from autotune.worker.timed_steps import TimedSteps, WarmUp

__all__ = ["ScriptTraining"]

_WHOLE = Composition(num_micro_steps=1, num_run=1)

_FIRST_WARM_UP = 2
"""Optimizer steps of the user's own run that are not timed: the second is slower under ZeRO-3."""


class ScriptTraining:
    """One rank of one run of the user's command.

    Args:
        spec: the trial; its `script` says which command.
        rank: which of its ranks this is.
        folder: the trial's folder, for its files and for the ranks to meet.
        log: where phases and events go.
    """

    def __init__(self, spec: TrialSpec, rank: int, folder: Path, log: RankLog) -> None:
        assert spec.script is not None
        self._started = time.perf_counter()
        self._spec = spec
        self._script = spec.script
        self._rank = rank
        self._folder = folder
        self._log = log
        self._device_type = DeviceType(os.environ["AUTOTUNE_DEVICE_TYPE"])
        self._device = join_when_asked(
            folder, rank=rank, num_ranks=spec.num_ranks, device_type=self._device_type
        )
        self._meter = memory_meter(self._device_type)
        compile_in_this_process()
        self._compilations = CompilationCounter()
        self._fed = FedBatches()
        # The user's own steps run whole: what they are made of is not known before.
        is_whole = spec.script.is_untouched
        self._composition = _WHOLE if is_whole else spec.composition
        self._num_micro = 0
        """Micro-batches of the optimizer step so far."""
        self._part_ends: list[float] = []
        self._engine: Any = None
        self._call: Mapping[str, Any] = {}

    def run(self) -> NoReturn:
        """Run the command until its steps are known; ends this process with a `result` event.

        Raises:
            Exception: whatever the program raises, or what it lacked.
        """
        check_is_here(self._script.command)
        self._steered = steering = self._steering()
        (self._folder / "output").mkdir(exist_ok=True)
        steer_trainers(steering)
        DeepSpeedCalls(steering, self).install()
        arguments = self._script.command.filled(self._placeholders(steering))
        os.environ.update(self._script.command.environment)
        status: object = None
        try:
            execute(self._script.command, arguments, local_rank=int(os.environ["LOCAL_RANK"]))
        except SystemExit as ended:
            status = ended.code
        if self._engine is None:
            raise NoEngineError(status)
        if self._has_enough_to_tell:
            self._end()
        raise EndedEarlyError(self._index, status)

    def _steering(self) -> Steering:
        spec, output = self._spec, str(self._folder / "output")
        if self._script.is_untouched:
            return Steering(strategy=None, output_folder=output, on_change=self._tell)
        config = deepspeed_config(
            # Short steps are whole ones of a smaller batch to the program.
            self._composition.workload(spec.workload),
            spec.strategy,
            num_devices=spec.num_ranks,
            device_type=self._device_type,
            nvme_path=spec.nvme_path,
        )
        return Steering(
            strategy=spec.strategy,
            config=config,
            accumulation=int(config["gradient_accumulation_steps"]),
            knows_layers=self._script.is_predictable,
            output_folder=output,
            on_change=self._tell,
        )

    def _placeholders(self, steering: Steering) -> dict[str, str]:
        """What stands in the place of each placeholder of the command."""
        values = {
            "micro_batch_size": str(steering.micro_batch_size or 1),
            "gradient_accumulation_steps": str(steering.accumulation),
            "output_dir": str(self._folder / "output"),
            "ds_config": str(self._folder / "ds_config.json"),
        }
        config = dict(steering.config)
        if steering.strategy is None:
            values |= self._script.command.first_values
            config = {
                "train_micro_batch_size_per_gpu": int(values["micro_batch_size"]),
                "gradient_accumulation_steps": int(values["gradient_accumulation_steps"]),
                "zero_optimization": {"stage": 0},
                "gradient_clipping": 1.0,
            }
        if self._rank == 0 and "ds_config" in self._script.command.placeholders:
            Path(values["ds_config"]).write_text(json.dumps(config, indent=1), encoding="utf-8")
        return values

    def _tell(self, words: str) -> None:
        self._log.write("changed", words=words)

    # What DeepSpeed's stand-in calls.

    def engine_made(self, engine: Any, call: Mapping[str, Any]) -> None:
        """Time the steps of this engine from now on."""
        self._engine, self._call = engine, call
        self._setup_time_s = time.perf_counter() - self._started
        self._log.write("ready", setup_time_s=self._setup_time_s)
        self._energy = energy_meter(self._device)
        self._fed.watch(engine.module)
        warm_up = _FIRST_WARM_UP if self._script.is_untouched else self._spec.num_warm_up_steps
        self._warm_up = WarmUp(warm_up)
        self._timed = TimedSteps(replace(self._spec, incumbents=()))
        self._figures: list[StepFigures] = []
        self._times_s: list[float] = []
        self._energies: list[float | None] = []
        self._losses: list[float] = []
        self._loss_parts: list[torch.Tensor] = []
        self._index = 0
        self._longest = 0
        self._retries_before = 0
        self._skipped = 0
        self._before: float | None = None
        self._wrap(engine)

    def _wrap(self, engine: Any) -> None:
        """Phases for whoever kills the process, losses, and the end of each optimizer step."""
        forward, backward, step = engine.forward, engine.backward, engine.step

        @functools.wraps(forward)
        def timed_forward(*args: Any, **kwargs: Any) -> Any:
            self._begin()
            if torch.is_grad_enabled():
                self._log.enter(Phase.FORWARD)
            return forward(*args, **kwargs)

        @functools.wraps(backward)
        def timed_backward(loss: Any, *args: Any, **kwargs: Any) -> Any:
            self._log.enter(Phase.BACKWARD)
            if isinstance(loss, torch.Tensor) and loss.numel() == 1:
                is_mean = kwargs.get("scale_wrt_gas", True)
                share = 1 / engine.gradient_accumulation_steps() if is_mean else 1.0
                self._loss_parts.append(loss.detach().float() * share)
            result = backward(loss, *args, **kwargs)
            self._micro_batch_ended()
            return result

        @functools.wraps(step)
        def timed_step(*args: Any, **kwargs: Any) -> Any:
            self._log.enter(Phase.STEP)
            is_last = engine.is_gradient_accumulation_boundary()
            result = step(*args, **kwargs)
            if is_last:
                self._step_ended()
            return result

        engine.forward, engine.backward, engine.step = timed_forward, timed_backward, timed_step

    def _begin(self) -> None:
        """The clock of the first step starts with its first forward pass."""
        if self._before is None:
            self._synchronize()
            self._start_clock()

    def _start_clock(self) -> None:
        self._before = time.perf_counter()
        self._joules_before = self._energy.joules()
        self._compiled_before = self._compilations.num_compilations

    def _micro_batch_ended(self) -> None:
        """Where only a part of a long step is run, the first and the last are timed apart."""
        self._num_micro += 1
        is_inner_end = self._num_micro in (1, self._composition.num_run - 1)
        if not self._composition.is_whole and is_inner_end:
            self._synchronize()
            self._part_ends.append(time.perf_counter())

    def _parts_s(self, ended: float) -> list[float]:
        """Seconds of the parts of a step that `Composition` puts together.

        Raises:
            IgnoredBatchError: the engine was not told of each micro-batch's backward pass.
        """
        assert self._before is not None
        if not self._composition.is_whole and len(self._part_ends) != 2:
            raise IgnoredBatchError.accumulation(self._num_micro, self._composition.num_run)
        ends = [*self._part_ends, ended]
        return [end - start for start, end in pairwise([self._before, *ends])]

    def _step_ended(self) -> None:
        """Count one optimizer step, and end the trial when enough is known."""
        self._begin()
        self._synchronize()
        parts_s = self._parts_s(time.perf_counter())
        joules = self._energy.joules()
        own = self._fed.end_step()
        loss = float(torch.stack(self._loss_parts).sum()) if self._loss_parts else 0.0
        self._loss_parts = []
        compiled = float(self._compilations.num_compilations - self._compiled_before)
        self._check_batches(own)
        figures, (compiled, *parts_s) = self._agreed(own, [compiled, *parts_s])
        spent_s = sum(parts_s)
        seconds = self._composition.step_time_s(parts_s)
        has_overflowed = self._engine.skipped_steps > self._skipped
        self._skipped = self._engine.skipped_steps
        is_timed = not has_overflowed and not self._warm_up.covers(
            self._index, has_compiled=bool(compiled)
        )
        self._log.write("step", index=self._index, time_s=seconds, loss=loss, is_timed=is_timed)
        self._losses.append(loss)
        self._longest = max(self._longest, own.longest_row)
        if is_timed:
            self._keep(figures, seconds, spent_s, joules)
        else:
            self._retries_before = self._meter.peaks().num_alloc_retries
        self._index += 1
        if self._timed.are_enough:
            self._end()
        self._num_micro, self._part_ends = 0, []
        # What this took is no part of the next step.
        self._start_clock()

    def _keep(
        self, figures: StepFigures, seconds: float, spent_s: float, joules: float | None
    ) -> None:
        """Keep what one timed step took.

        Args:
            figures: what all ranks fed.
            seconds: of the whole step, composed where only a part was run.
            spent_s: of what was run.
            joules: the meter at its end; None where there is none.
        """
        self._figures.append(figures)
        self._times_s.append(seconds)
        before = self._joules_before
        used = None if joules is None or before is None else joules - before
        # At the power of what was run.
        self._energies.append(None if used is None else used * seconds / spent_s)
        self._timed.add(self._as_of_mean_step()[-1], spent_s=spent_s)

    def _agreed(self, own: StepFigures, worst: list[float]) -> tuple[StepFigures, list[float]]:
        """Sums over the ranks that have samples of their own, and the worst of all ranks."""
        sums = torch.tensor(
            [own.rows, own.real_tokens, own.padded_tokens],
            device=self._device,
            dtype=torch.float64,
        )
        most = torch.tensor(worst, device=self._device, dtype=torch.float64)
        dist.all_reduce(sums)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        rows, real, padded = sums.tolist()
        figures = replace(own, rows=int(rows), real_tokens=real, padded_tokens=padded)
        return figures, most.tolist()

    def _check_batches(self, own: StepFigures) -> None:
        """Refuse a program that trains other batches than it was told, in the first step."""
        if self._script.is_untouched or self._index:
            return
        is_padded = self._spec.strategy.batching is Batching.PADDED
        told = self._engine.gradient_accumulation_steps()
        # A model may be called several times before one backward pass.
        seen = self._num_micro or own.num_batches
        if seen != told:
            raise IgnoredBatchError.accumulation(seen, told)
        expected = self._script.rows_per_sample * self._spec.strategy.micro_batch_size
        rows = max(self._fed.rows_of_batches, default=0)
        if expected and is_padded and rows != round(expected):
            raise IgnoredBatchError.micro_batch(rows, round(expected))

    @property
    def _has_enough_to_tell(self) -> bool:
        return len(self._times_s) > 1

    def _as_of_mean_step(self) -> list[float]:
        """Seconds of each timed step, as if it had had the mean number of tokens."""
        weights = [each.real_tokens or each.rows for each in self._figures]
        mean = sum(weights) / len(weights)
        return [
            seconds * mean / weight if weight else seconds
            for seconds, weight in zip(self._times_s, weights, strict=True)
        ]

    def _end(self) -> NoReturn:
        """Write the result and leave, without the program's own way out."""
        findings = self._findings() if self._script.is_untouched and self._rank == 0 else None
        self._log.write("result", **self._result(), findings=findings)
        # Destructors of process groups and programs that save at their end are left out.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    def _result(self) -> dict[str, Any]:
        peaks = self._meter.peaks()
        num = len(self._figures)
        run = num * self._composition.share_run
        model = self._engine.module
        energies = [each for each in self._energies if each is not None]
        return {
            "defeat": None,
            "step_times_s": self._as_of_mean_step(),
            "losses": self._losses,
            "energy_j": sum(energies) if len(energies) == num else None,
            "peak_allocated_bytes": peaks.allocated,
            "peak_reserved_bytes": peaks.reserved,
            "peak_device_bytes": peaks.device,
            "host_memory_bytes": self._meter.held_on_host(),
            "num_alloc_retries": peaks.num_alloc_retries - self._retries_before,
            "num_parameters": count(model.parameters()),
            "num_trainable_parameters": count_trainable(model.parameters()),
            "optimizer_state_bytes": optimizer_state_bytes(self._engine),
            "share_run": self._composition.share_run,
            "setup_time_s": self._setup_time_s,
            "skipped_steps": self._skipped,
            "environment": settings_in(os.environ),
            "fed": {
                "samples": self._engine.train_batch_size() / self._composition.share_run,
                "tokens": sum(each.real_tokens for each in self._figures) / run,
                "padded_tokens": sum(each.padded_tokens for each in self._figures) / run,
            },
        }

    def _findings(self) -> dict[str, Any]:
        config = getattr(self._engine, "_config", None)
        return findings_of(
            self._engine,
            self._call,
            config=dict(getattr(config, "_param_dict", {}) or {}),
            lengths=self._fed.lengths,
            rows=self._fed.rows_of_batches,
            longest=self._longest,
            is_joined=self._fed.is_joined,
            joins_batches="batching" in self._steered.by_trainer and self._fed.has_masks,
        ).model_dump(mode="json")

    def _synchronize(self) -> None:
        if self._device_type is DeviceType.CUDA:
            torch.cuda.synchronize()
