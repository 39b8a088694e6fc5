"""The short training that a trial is: a real DeepSpeed engine, a few steps, the clock."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from autotune.deepspeed_config import LEARNING_RATE, deepspeed_config
from autotune.hardware import DeviceType
from autotune.trial import Phase, TrialSpec
from autotune.worker.apply import apply_strategy, build_optimizer
from autotune.worker.events import RankLog
from autotune.worker.memory import memory_meter
from autotune.worker.model import build_model

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
        self._rank = rank
        self._log = log
        self._device_type = DeviceType(os.environ["AUTOTUNE_DEVICE_TYPE"])
        self._device = self._join(folder)
        self._meter = memory_meter(self._device_type)
        self._accumulation = spec.strategy.gradient_accumulation_steps(
            spec.workload.global_batch_size, spec.num_ranks
        )
        self._engine = self._build_engine()

    def _join(self, folder: Path) -> torch.device:
        """Choose the device and meet the other ranks, through a file: nothing listens for it."""
        import deepspeed

        is_cuda = self._device_type is DeviceType.CUDA
        device = (
            torch.device("cuda", int(os.environ["LOCAL_RANK"])) if is_cuda else torch.device("cpu")
        )
        if is_cuda:
            torch.cuda.set_device(device)
        try:
            dist.init_process_group(
                backend="nccl" if is_cuda else "gloo",
                init_method=f"file://{folder.resolve() / 'rendezvous'}",
                rank=self._rank,
                world_size=self._spec.num_ranks,
                timeout=timedelta(minutes=10),
                device_id=device if is_cuda else None,
            )
        except RuntimeError as error:
            # gloo's own errors have no type of theirs.
            raise dist.DistNetworkError(str(error)) from error
        deepspeed.init_distributed(verbose=False)
        return device

    def _build_engine(self) -> Any:
        import deepspeed

        spec, strategy = self._spec, self._spec.strategy
        config = deepspeed_config(
            spec.workload,
            strategy,
            num_devices=spec.num_ranks,
            device_type=self._device_type,
        )
        torch.manual_seed(spec.seed)
        model = build_model(
            spec.workload,
            strategy,
            device=self._device,
            deepspeed_config=config,
            seed=spec.seed,
        )
        model = apply_strategy(
            model, strategy, method=spec.workload.method, lora_targets=spec.workload.lora_targets
        )
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._num_parameters = sum(_full_size(parameter) for parameter in model.parameters())
        self._num_trainable = sum(_full_size(parameter) for parameter in trainable)
        engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=trainable,
            optimizer=build_optimizer(trainable, strategy, LEARNING_RATE),
            config=config,
        )
        return engine

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
            "num_parameters": self._num_parameters,
            "num_trainable_parameters": self._num_trainable,
            "optimizer_state_bytes": _state_bytes(self._engine),
            "setup_time_s": setup_time_s,
            "skipped_steps": skipped,
        }

    def _optimizer_step(self, index: int) -> tuple[float, float]:
        """All micro-batches of one step: mean loss of this rank, seconds of the slowest."""
        batches = [self._batch(index, micro) for micro in range(self._accumulation)]
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

    def _batch(self, step: int, micro: int) -> torch.Tensor:
        """Random tokens, [micro_batch_size, seq_len], the longest sample in every row.

        A sample's tokens follow from its place in the global batch, so an optimizer step sees the
        same samples however they are divided into micro-batches and ranks.
        """
        spec = self._spec
        size = spec.strategy.micro_batch_size
        first = (
            micro * spec.num_ranks + self._rank
        ) * size + step * spec.workload.global_batch_size
        rows = []
        for sample in range(first, first + size):
            generator = torch.Generator().manual_seed(spec.seed * 1_000_003 + sample)
            rows.append(
                torch.randint(
                    spec.workload.model.vocab_size, (spec.workload.seq_len,), generator=generator
                )
            )
        return torch.stack(rows).to(self._device)

    def _synchronize(self) -> None:
        if self._device_type is DeviceType.CUDA:
            torch.cuda.synchronize()


def _state_bytes(engine: Any) -> int:
    """Bytes of the tensors that the optimizer under DeepSpeed's wrapper keeps."""
    wrapped = engine.optimizer
    state = getattr(wrapped, "optimizer", wrapped).state
    tensors = [t for kept in state.values() for t in kept.values() if isinstance(t, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _full_size(parameter: torch.nn.Parameter) -> int:
    """Elements of a parameter, divided by ZeRO-3 or packed to 4 bit or not."""
    if hasattr(parameter, "ds_numel"):
        return int(parameter.ds_numel)
    quantization = getattr(parameter, "quant_state", None)
    return int(quantization.shape.numel()) if quantization is not None else parameter.numel()
