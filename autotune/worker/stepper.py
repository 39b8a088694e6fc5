"""One optimizer step of an engine: all its micro-batches, and the mean of their losses.

DeepSpeed's plain engine is driven call by call; its pipeline engine runs a schedule of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from autotune.trials.trial import Phase
from autotune.worker.events import RankLog

__all__ = ["PipelineStepper", "PlainStepper", "Stepper", "stepper"]

Batch = dict[str, torch.Tensor]


class Stepper(Protocol):
    """Drives one kind of engine."""

    def step(self, batches: list[Batch]) -> torch.Tensor:
        """Train on the micro-batches of one optimizer step, and give their mean loss.

        Args:
            batches: the model's arguments, each tensor [samples, tokens], on the device.
        """
        ...


class PlainStepper:
    """Forward, backward and step of each micro-batch in turn."""

    def __init__(self, engine: Any, log: RankLog) -> None:
        self._engine = engine
        self._log = log

    def step(self, batches: list[Batch]) -> torch.Tensor:
        """The mean loss of this rank's samples."""
        losses = []
        for batch in batches:
            self._log.enter(Phase.FORWARD)
            loss = self._engine(**batch, use_cache=False).loss
            self._log.enter(Phase.BACKWARD)
            self._engine.backward(loss)
            self._log.enter(Phase.STEP)
            self._engine.step()
            losses.append(loss.detach())
            del loss
        return torch.stack(losses).float().mean()


class PipelineStepper:
    """DeepSpeed's schedule, in which the micro-batches follow each other through the stages."""

    def __init__(self, engine: Any, log: RankLog) -> None:
        from deepspeed.runtime.pipe import schedule

        self._engine = engine
        phases = {
            schedule.ForwardPass: Phase.FORWARD,
            schedule.BackwardPass: Phase.BACKWARD,
            schedule.OptimizerStep: Phase.STEP,
        }
        # The engine looks its instructions up here, one after the other, within `train_batch`.
        engine._INSTRUCTION_MAP = {
            kind: _entering(phases[kind], run, log) if kind in phases else run
            for kind, run in engine._INSTRUCTION_MAP.items()
        }

    def step(self, batches: list[Batch]) -> torch.Tensor:
        """The mean loss of all ranks' samples, which every stage is told."""
        samples = (((batch["input_ids"], batch["labels"]), ()) for batch in batches)
        loss: torch.Tensor = self._engine.train_batch(samples)
        return loss.float()


def _entering(phase: Phase, run: Callable[..., None], log: RankLog) -> Callable[..., None]:
    def run_in_phase(engine: Any, **arguments: Any) -> None:
        log.enter(phase)
        run(engine, **arguments)

    return run_in_phase


def stepper(engine: Any, log: RankLog) -> Stepper:
    """The stepper for an engine of DeepSpeed's."""
    from deepspeed.runtime.pipe.engine import PipelineEngine

    is_pipeline = isinstance(engine, PipelineEngine)
    return PipelineStepper(engine, log) if is_pipeline else PlainStepper(engine, log)
