"""A runner that adds to each measurement how much other work the machine had meanwhile.

Knows processors and GPUs; does not know how trials run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from autotune.machine.hardware import Hardware
from autotune.machine.load import LoadMeter, busy_gpu_fraction, disturbance
from autotune.trials.protocols import Runner
from autotune.trials.trial import Outcome, TrialSpec

__all__ = ["WatchedRunner"]


class WatchedRunner:
    """Runs trials as another runner does, and watches the machine.

    Args:
        runner: runs the trials, by processes below this one.
        hardware: the devices of a trial.
    """

    def __init__(self, runner: Runner, hardware: Hardware) -> None:
        self._runner = runner
        self._hardware = hardware
        self._gpu_fraction = busy_gpu_fraction(hardware)
        """Before any trial has run here."""

    def run(
        self,
        spec: TrialSpec,
        *,
        folder: Path,
        timeout_s: float,
        on_event: Callable[[Mapping[str, Any]], None] = lambda event: None,
        should_stop: Callable[[], str | None] = lambda: None,
    ) -> Outcome:
        """As `protocols.Runner.run`."""
        meter = LoadMeter()
        outcome = self._runner.run(
            spec, folder=folder, timeout_s=timeout_s, on_event=on_event, should_stop=should_stop
        )
        fraction = max(self._gpu_fraction, disturbance(self._hardware, meter.cores_of_others()))
        if not fraction or outcome.measurement is None:
            return outcome
        return replace(outcome, measurement=replace(outcome.measurement, disturbance=fraction))
