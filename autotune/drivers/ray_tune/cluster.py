"""A Ray cluster: its nodes by kind of device, found out by asking each, and nodes that join.

Does not know what is trained.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from autotune.cluster.node_software import own_versions, require_versions
from autotune.cluster.trial_shape import (
    ClusterNode,
    TrialShape,
    chosen_kind,
    trial_shape,
)
from autotune.drivers.ray_tune.ray_log import without_ray_output
from autotune.errors import AutotuneError, ConfigError, LaunchError
from autotune.machine.hardware import DeviceType, Hardware, detect_hardware, with_nvme

__all__ = ["RayCluster", "kind_of_this_node", "node_hardware", "placement_of"]

_REFRESH_S = 2.0
_CONNECT_TIMEOUT_S = 5.0
_PROBE_TIMEOUT_S = 120.0

_KIND_LABEL = "device-kind"
"""A node's label with this name says its kind, where a CPU's cannot be told."""


class RayCluster:
    """The nodes of one kind of device, of a cluster that others may use too.

    Args:
        address: `local` for a cluster of this machine alone, started here on the loopback
            interface; `auto` for the one that this machine is part of, or else a local one;
            otherwise host:port of a cluster's head.
        device_kind: which nodes to use; the most numerous kind if left out.
        devices_per_trial: of a trial; a node's if left out, without GPUs two ranks.
        nodes_per_trial: over how many nodes a trial is spread; one if it fits.
        nvme_path: a folder on a fast disk of each node.

    Raises:
        ConfigError: there is no such cluster, kind or shape.
        LaunchError: Ray cannot be started, or no node answers.
    """

    def __init__(
        self,
        address: str,
        *,
        device_kind: str | None = None,
        devices_per_trial: int | None = None,
        nodes_per_trial: int | None = None,
        nvme_path: Path | None = None,
    ) -> None:
        self._nvme_path = nvme_path
        self._nodes: dict[str, ClusterNode] = {}
        self._refused: dict[str, str] = {}
        self._probes: dict[str, Any] = {}
        self._refreshed = -_REFRESH_S
        self._quiet = contextlib.ExitStack()
        self._quiet.enter_context(without_ray_output())
        try:
            self.is_local = _connect(address)
            nodes = self._first_nodes()
            self.kind = chosen_kind(nodes, device_kind)
            self.shape: TrialShape = trial_shape(
                self.nodes, num_devices=devices_per_trial, num_nodes=nodes_per_trial
            )
            self.hardware: Hardware = self.shape.hardware(self.nodes)
        except BaseException as error:
            self.close()
            if isinstance(error, AutotuneError) or not isinstance(error, Exception):
                raise
            # What keeps Ray from starting is raised in whatever form it had below.
            raise LaunchError(
                f"--ray {address}: Ray cannot be used here: {_reason(error)}; set RAY_TMPDIR to a "
                "short path on a disk with room, or leave --ray out to run without it"
            ) from error

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def nodes(self) -> list[ClusterNode]:
        """The nodes of the study's kind that are alive."""
        return [node for node in self._nodes.values() if node.kind == self.kind]

    @property
    def others(self) -> list[ClusterNode]:
        """Nodes of other kinds."""
        return [node for node in self._nodes.values() if node.kind != self.kind]

    @property
    def refused(self) -> dict[str, str]:
        """Why nodes that lend devices are not used."""
        return {node_id: why for node_id, why in self._refused.items() if why}

    @property
    def capacity(self) -> int:
        """How many trials run at once on the nodes that are there now."""
        return self.shape.capacity(self.nodes)

    @property
    def placement(self) -> dict[str, Any]:
        """How to reserve a trial's share, as `ray.util.placement_group` takes it.

        Nodes of other kinds, and those that are refused, are ruled out; a node that has only just
        joined is not known yet, so a trial looks again where it has landed.
        """
        wrong = sorted([*(node.node_id for node in self.others), *self.refused])
        return placement_of(self.shape, without=wrong)

    def __str__(self) -> str:
        """In a line for people."""
        nodes = self.nodes
        devices = sum(node.hardware.num_devices for node in nodes)
        return f"{len(nodes)} node{'s'[: len(nodes) != 1]}, {devices} x {self.kind}"

    def refresh(self, note: Callable[[str], None] = lambda words: None) -> None:
        """Look which nodes are there, at most every other second; a new one is asked first.

        Args:
            note: told of nodes that came and went.
        """
        if time.monotonic() - self._refreshed < _REFRESH_S:
            return
        self._refreshed = time.monotonic()
        alive = _alive_nodes()
        for node_id in [node_id for node_id in self._nodes if node_id not in alive]:
            note(f"node {self._nodes.pop(node_id).address} is lost")
        for node_id in set(self._probes) - alive.keys():
            del self._probes[node_id]
        for node_id, record in alive.items():
            if node_id not in self._nodes and node_id not in self._refused:
                self._ask(node_id, record, note)

    def _ask(self, node_id: str, record: dict[str, Any], note: Callable[[str], None]) -> None:
        import ray

        if node_id not in self._probes:
            self._probes[node_id] = _probe(node_id, record, self._nvme_path)
            return
        if ray.wait([self._probes[node_id]], timeout=0)[0]:
            words = self._take(node_id, record, self._probes.pop(node_id))
            if words:
                note(words)

    def _take(self, node_id: str, record: dict[str, Any], answer: Any) -> str:
        """Take in what a node says of itself; in words for people."""
        import ray

        address = record["NodeManagerAddress"]
        try:
            hardware = ray.get(answer)
        except Exception as error:  # whatever is wrong over there, that node is not used
            words = str(error).strip().splitlines()
            self._refused[node_id] = f"{address}: {words[-1] if words else type(error).__name__}"
            return f"node {self._refused[node_id]}: it is not used"
        if hardware is None:
            self._refused[node_id] = ""
            return ""
        node = ClusterNode(node_id=node_id, address=address, hardware=hardware)
        self._nodes[node_id] = node
        devices = f"{hardware.num_devices} x {hardware.device_kind}"
        return f"node {address} has joined: {devices}"

    def _first_nodes(self) -> list[ClusterNode]:
        import ray

        alive = _alive_nodes()
        probes = {
            node_id: _probe(node_id, record, self._nvme_path) for node_id, record in alive.items()
        }
        done, _ = ray.wait(
            list(probes.values()), num_returns=len(probes), timeout=_PROBE_TIMEOUT_S
        )
        for node_id, answer in probes.items():
            if answer in done:
                self._take(node_id, alive[node_id], answer)
        if not self._nodes:
            why = "; ".join(self.refused.values()) or "no node offers GPUs or CPUs"
            raise LaunchError(f"--ray: no node can be used: {why}")
        return list(self._nodes.values())

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        import ray

        ray.shutdown()
        self._quiet.close()


def placement_of(shape: TrialShape, *, without: Sequence[str] = ()) -> dict[str, Any]:
    """A trial's share as `ray.util.placement_group` takes it: each bundle on a node of its own.

    Args:
        shape: the devices of a trial.
        without: ids of nodes that it must not lie on.
    """
    resource = "GPU" if shape.device_type is DeviceType.CUDA else "CPU"
    placement: dict[str, Any] = {
        "bundles": [{resource: float(shape.devices_per_node)} for _ in range(shape.num_nodes)],
        "strategy": "STRICT_SPREAD" if shape.num_nodes > 1 else "STRICT_PACK",
    }
    if without:
        selector = {"ray.io/node-id": f"!in({','.join(without)})"}
        placement["bundle_label_selector"] = [selector] * shape.num_nodes
    return placement


def _connect(address: str) -> bool:
    """Become a driver of the cluster; whether it was started here.

    Raises:
        ConfigError: there is none at this address.
    """
    if address.startswith("ray://"):
        raise ConfigError(
            f"--ray {address}: a client of Ray cannot drive a search; "
            "run it on a node of the cluster, with --ray auto"
        )
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    # What it has to say goes to a file, once the study's folder is there.
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    logging.getLogger("ray").setLevel(logging.ERROR)
    there = None if address == "local" else _answering(address)
    if there is None and address not in ("auto", "local"):
        raise ConfigError(
            f"--ray {address}: no cluster answers there; give auto, local, or host:port"
        )
    if there is None:
        _stay_on_loopback()
        ray.init(address="local", include_dashboard=False, **quiet)
        return True
    try:
        ray.init(address=there, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"--ray {address}: {_reason(error)}; "
            "if the cluster asks for a token, set RAY_AUTH_MODE=token"
        ) from error
    return False


def _reason(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _answering(address: str) -> str | None:
    """Host and port of the cluster's head, if anybody listens there; else Ray would wait long."""
    from ray._private.services import canonicalize_bootstrap_address

    try:
        there = canonicalize_bootstrap_address(address)
        host, _, port = str(there).rpartition(":")
        with socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S):
            return str(there)
    except (OSError, OverflowError, ValueError):
        return None


def _stay_on_loopback() -> None:
    """Have Ray listen on the loopback interface alone, which it does by itself on a Mac only.

    Its own way to name an address turns that of the loopback interface into the host's.
    """
    from ray._private import ray_constants

    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False


def _alive_nodes() -> dict[str, dict[str, Any]]:
    import ray

    return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}


def _probe(node_id: str, record: dict[str, Any], nvme_path: Path | None) -> Any:
    """Have a node say what it is; Ray's reference to its answer."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    resources = record["Resources"]
    return (
        ray.remote(node_hardware)
        .options(
            num_cpus=0,
            max_retries=1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        )
        .remote(
            num_gpus=int(resources.get("GPU", 0)),
            num_cpus=int(resources.get("CPU", 0)),
            kind=record.get("Labels", {}).get(_KIND_LABEL),
            nvme_path=nvme_path,
            versions=own_versions(),
        )
    )


def node_hardware(
    *,
    num_gpus: int,
    num_cpus: int,
    kind: str | None,
    nvme_path: Path | None = None,
    versions: Mapping[str, str] | None = None,
) -> Hardware | None:
    """What this node lends; None where that is nothing. Runs on the node.

    Args:
        num_gpus: GPUs that Ray gives out here.
        num_cpus: CPUs that Ray gives out here.
        kind: what its label says.
        nvme_path: a folder for what is offloaded to NVMe.
        versions: what must be installed here.

    Raises:
        ConfigError: Ray gives out more GPUs than there are, the folder cannot be used, or other
            versions are installed.
    """
    num_devices = num_gpus or num_cpus
    if num_devices == 0:
        return None
    require_versions(versions or {})
    hardware = _detect(DeviceType.CUDA if num_gpus else DeviceType.CPU, num_devices)
    if num_gpus and hardware.device_type is not DeviceType.CUDA:
        raise ConfigError(f"Ray gives out {num_gpus} GPU(s) here, but NVML sees none")
    if nvme_path is not None:
        hardware = with_nvme(hardware, nvme_path)
    return replace(hardware, device_kind=kind) if kind else hardware


def kind_of_this_node(device_type: DeviceType) -> str:
    """The kind of device that this node has, as its label or the device itself says."""
    import ray

    labels = ray.get_runtime_context().get_node_labels()
    return str(labels.get(_KIND_LABEL) or _detect(device_type, None).device_kind)


def _detect(device_type: DeviceType, num_devices: int | None) -> Hardware:
    """What this node has of one type of device."""
    with contextlib.ExitStack() as stack:
        if device_type is DeviceType.CPU:
            stack.enter_context(_environment("DS_ACCELERATOR", "cpu"))
        elif not os.environ.get("CUDA_VISIBLE_DEVICES"):
            # Ray hides the GPUs from a task that asks for none.
            stack.enter_context(_environment("CUDA_VISIBLE_DEVICES", None))
        return detect_hardware(num_devices)


@contextlib.contextmanager
def _environment(name: str, value: str | None) -> Iterator[None]:
    """A variable for a while; None unsets it."""
    before = os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before
