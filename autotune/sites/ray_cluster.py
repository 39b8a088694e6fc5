"""Trials over the nodes of a Ray cluster, in Ray Tune's loop. Does not know what is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from autotune.drivers.context import DriverContext
from autotune.drivers.ray_tune import RayCluster, RayTuneDriver
from autotune.errors import ConfigError
from autotune.machine.hardware import Hardware
from autotune.sites.site import SiteOptions
from autotune.trials.protocols import Driver

__all__ = ["RayClusterSite"]

_NOT_TAKEN = {"devices": "on a cluster, --gpus-per-trial says how many"}


class RayClusterSite:
    """A `Site`: each node's ranks fork from a server of its own, which Ray starts there.

    Args:
        options: as the user gave them.
        address: of the cluster, as `RayCluster` takes it.

    Raises:
        ConfigError: options that contradict each other, or what is there.
        LaunchError: no node of the cluster can be used.
    """

    def __init__(self, options: SiteOptions, address: str) -> None:
        options.refuse(_NOT_TAKEN)
        if options.max_concurrent is not None and options.max_concurrent < 1:
            raise ConfigError(f"--max-concurrent must be at least 1, got {options.max_concurrent}")
        self._max_concurrent = options.max_concurrent
        self._cluster = RayCluster(
            address,
            device_kind=options.device_kind,
            devices_per_trial=options.devices_per_trial,
            nodes_per_trial=options.nodes_per_trial,
            nvme_path=options.nvme_path,
        )
        self.trials_side_by_side = 1
        self.num_gpus_here = 0
        # Whether the nodes have the extension compiled is not known.
        self.build_s = 0.0
        self.loading = "Each node imports PyTorch and DeepSpeed once for all its trials…"
        self._study_name = ""
        self._log = Path("ray.log")

    @property
    def hardware(self) -> Hardware:
        """What a trial has on the least of the nodes."""
        return self._cluster.hardware

    @property
    def introduction(self) -> Sequence[str]:
        """The nodes in use, those of other kinds, and those that cannot be used."""
        cluster = self._cluster
        where = "a Ray cluster of this machine alone" if cluster.is_local else "the Ray cluster"
        num = f"{cluster.capacity} trial{'s'[: cluster.capacity != 1]} at once"
        return [
            f"On {where}: {cluster}; {num}, each on {cluster.hardware}",
            *(
                f"Not used: nodes with {kind}; --device-kind {kind} uses them instead"
                for kind in sorted({node.kind for node in cluster.others})
            ),
            *(f"Not used: {why}" for why in cluster.refused.values()),
        ]

    def start(
        self,
        *,
        folder: Path,
        study_name: str,
        model_type: str,
        reason_to_stop: Callable[[], str | None],
    ) -> float | None:
        """Nothing is awaited: a trial's actor starts the servers where it is placed."""
        self._study_name = study_name
        self._log = folder / "ray.log"
        return 0.0

    def driver(self, context: DriverContext) -> Driver:
        """Ray Tune's loop."""
        return RayTuneDriver(
            self._cluster,
            context,
            max_concurrent=self._max_concurrent,
            study_name=self._study_name,
            log=self._log,
        )

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        self._cluster.close()
