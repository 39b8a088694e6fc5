"""Trials on this machine: one on all devices, or several side by side on a part of them each.

Does not know what is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from autotune.drivers.context import DriverContext
from autotune.drivers.local import LocalDriver
from autotune.drivers.side_by_side import SideBySideDriver
from autotune.launch.launcher import Launcher
from autotune.launch.watched_runner import WatchedRunner
from autotune.machine.extensions import compiled_extension
from autotune.machine.hardware import (
    Hardware,
    detect_hardware,
    shared_out,
    visible_gpus,
    with_nvme,
)
from autotune.machine.rates_file import with_measured_rates
from autotune.sites.site import OF_ANY_MODEL, SiteOptions
from autotune.trials.protocols import Driver

__all__ = ["ThisMachine"]

_BUILD_S = 60.0
"""To compile CPU Adam, as measured on the host of an H100."""

_NEEDS_A_CLUSTER = "it is for a cluster; add --ray auto"

_NOT_TAKEN = dict.fromkeys(("nodes_per_trial", "max_concurrent", "device_kind"), _NEEDS_A_CLUSTER)


class ThisMachine:
    """A `Site`: warm servers here, each on devices of its own.

    Args:
        options: as the user gave them.

    Raises:
        ConfigError: an option is about a cluster, or the devices or the disk are not there.
    """

    def __init__(self, options: SiteOptions) -> None:
        options.refuse(_NOT_TAKEN)
        hardware = with_measured_rates(detect_hardware(options.devices))
        if options.nvme_path is not None:
            hardware = with_nvme(hardware, options.nvme_path)
        self.trials_side_by_side = 1
        if options.devices_per_trial is not None:
            hardware, self.trials_side_by_side = shared_out(hardware, options.devices_per_trial)
        self.hardware: Hardware = hardware
        self.introduction: Sequence[str] = ()
        self.loading = "Importing PyTorch and DeepSpeed (once per search)…"
        self._launchers: list[Launcher] = []

    @property
    def num_gpus_here(self) -> int:
        """Number of GPUs of the whole machine, whatever --devices says."""
        return len(visible_gpus())

    @property
    def build_s(self) -> float:
        """Seconds to build CPU Adam; 0 once the extension is in torch's cache."""
        return 0.0 if compiled_extension("cpu_adam") else _BUILD_S

    def start(
        self,
        *,
        folder: Path,
        study_name: str,
        model_type: str,
        reason_to_stop: Callable[[], str | None],
    ) -> float | None:
        """Warm one server for each trial that runs at a time; those that run stay."""
        if self._launchers:
            return 0.0
        self._launchers = [
            Launcher(
                self.hardware,
                model_type=model_type,
                folder=folder,
                slot=slot,
                num_slots=self.trials_side_by_side,
                is_offline=model_type != OF_ANY_MODEL,
            )
            for slot in range(self.trials_side_by_side)
        ]
        return _start(self._launchers, reason_to_stop)

    def driver(self, context: DriverContext) -> Driver:
        """One trial after the other, or one on each part of the devices."""
        runners = [
            WatchedRunner(each, self.hardware, place) for place, each in enumerate(self._launchers)
        ]
        if len(runners) == 1:
            return LocalDriver(runners[0], context)
        return SideBySideDriver(runners, context)

    def close(self) -> None:
        """End the servers and all ranks below them."""
        while self._launchers:
            self._launchers.pop().close()


def _start(
    launchers: Sequence[Launcher], reason_to_stop: Callable[[], str | None]
) -> float | None:
    """Start all at once; the seconds that the slowest took, or None if it was stopped."""
    if len(launchers) == 1:
        return launchers[0].start(reason_to_stop)
    reason: str | None = None
    with ThreadPoolExecutor(len(launchers)) as pool:
        starting = [pool.submit(launcher.start, lambda: reason) for launcher in launchers]
        while wait(starting, timeout=0.1).not_done:
            reason = reason or reason_to_stop()
    seconds = [start.result() for start in starting]
    known = [s for s in seconds if s is not None]
    return max(known) if len(known) == len(seconds) else None
