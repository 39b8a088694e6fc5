"""Where trials run: on this machine, or over a Ray cluster, which alone needs Ray imported."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from autotune.cli.options import detect_ranks
from autotune.errors import ConfigError
from autotune.machine.hardware import Hardware, shared_out, with_nvme
from autotune.machine.rates_file import with_measured_rates

if TYPE_CHECKING:
    from autotune.drivers.ray_tune import RayCluster

__all__ = ["Cluster", "ClusterOptions", "Site"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """A cluster to run trials on, and how many of them at once."""

    ray: RayCluster
    max_concurrent: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """Where trials run."""

    hardware: Hardware
    """What each trial has."""
    num_places: int = 1
    """How many run side by side on this machine."""
    cluster: Cluster | None = None
    """The cluster that they run on instead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterOptions:
    """The options of a search that say where its trials run."""

    address: str | None
    devices: int | None
    devices_per_trial: int | None
    nodes_per_trial: int | None
    max_concurrent: int | None
    device_kind: str | None
    nvme_path: Path | None

    @contextlib.contextmanager
    def open(self, console: Console) -> Iterator[Site]:
        """Where trials run, as long as it is entered.

        Raises:
            ConfigError: options that contradict each other, or what is there.
            LaunchError: no node of the cluster can be used.
        """
        self._check()
        if self.address is None:
            hardware = with_measured_rates(detect_ranks(self.devices))
            if self.nvme_path is not None:
                hardware = with_nvme(hardware, self.nvme_path)
            num_places = 1
            if self.devices_per_trial is not None:
                hardware, num_places = shared_out(hardware, self.devices_per_trial)
            yield Site(hardware=hardware, num_places=num_places)
            return
        from autotune.drivers.ray_tune import RayCluster

        with RayCluster(
            self.address,
            device_kind=self.device_kind,
            devices_per_trial=self.devices_per_trial,
            nodes_per_trial=self.nodes_per_trial,
            nvme_path=self.nvme_path,
        ) as cluster:
            for line in _introduction(cluster):
                console.print(line, markup=False, soft_wrap=True)
            reached = Cluster(ray=cluster, max_concurrent=self.max_concurrent)
            yield Site(hardware=cluster.hardware, cluster=reached)

    def _check(self) -> None:
        """Options that have no meaning where trials run are a mistake, not a wish."""
        of_cluster = {
            "--nodes-per-trial": self.nodes_per_trial,
            "--max-concurrent": self.max_concurrent,
            "--device-kind": self.device_kind,
        }
        if self.address is None:
            for flag, value in of_cluster.items():
                if value is not None:
                    raise ConfigError(f"{flag} {value}: it is about a cluster; add --ray auto")
        elif self.devices is not None:
            raise ConfigError(
                f"--devices {self.devices}: on a cluster, --gpus-per-trial says how many"
            )
        if self.max_concurrent is not None and self.max_concurrent < 1:
            raise ConfigError(f"--max-concurrent must be at least 1, got {self.max_concurrent}")


def _introduction(cluster: RayCluster) -> list[str]:
    """What there is, and what of it is not used."""
    where = "a Ray cluster of this machine alone" if cluster.is_local else "the Ray cluster"
    lines = [
        f"On {where}: {cluster}; {cluster.capacity} trial(s) at once, each on {cluster.hardware}"
    ]
    for kind in sorted({node.kind for node in cluster.others}):
        lines.append(f"Not used: nodes with {kind}; --device-kind {kind} would use them instead")
    lines += [f"Not used: {why}" for why in cluster.refused.values()]
    return lines
