"""A runner that adds to each measurement how much other work the machine had meanwhile.

Knows processors and GPUs; does not know how trials run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from autotune.launch.rank_environment import devices_of
from autotune.machine.hardware import Hardware
from autotune.machine.load import LoadMeter, busy_gpu_fraction, gpu_load_meter, other_work
from autotune.trials.protocols import Runner
from autotune.trials.trial import Outcome, TrialSpec

__all__ = ["WatchedRunner"]


class WatchedRunner:
    """Runs trials as another runner does, and watches the machine.

    Args:
        runner: runs the trials, by processes below this one.
        hardware: the devices of a trial.
        place: which of the runners that work side by side it is; each has devices of its own.
    """

    def __init__(self, runner: Runner, hardware: Hardware, place: int = 0) -> None:
        self._runner = runner
        self._hardware = hardware
        self._devices = devices_of(hardware, place)
        self._gpu_fraction = busy_gpu_fraction(hardware)
        """Before any trial has run here; stands where NVML does not tell processes apart."""

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
        meter, gpus = LoadMeter(), gpu_load_meter(self._hardware, self._devices)

        def look_and_ask() -> str | None:
            gpus.look()
            return should_stop()

        outcome = self._runner.run(
            spec, folder=folder, timeout_s=timeout_s, on_event=on_event, should_stop=look_and_ask
        )
        if outcome.measurement is None:
            return outcome
        others = other_work(
            self._hardware,
            cores=meter.cores_of_others(),
            gpus=gpus.of_others(),
            gpu_fraction_before=self._gpu_fraction,
        )
        measurement = replace(
            outcome.measurement, disturbance=others.share, others_device_bytes=others.device_bytes
        )
        return replace(outcome, measurement=measurement)
