"""The devices and nodes that one trial takes, and how many such trials a cluster holds.

Arithmetic only: it knows neither Ray nor what is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from autotune.errors import ConfigError
from autotune.machine.hardware import DeviceType, Hardware

__all__ = ["ClusterNode", "TrialShape", "chosen_kind", "trial_shape"]

_CPU_RANKS = 2
"""Ranks of a trial on a cluster without GPUs, as on one machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterNode:
    """One node of the cluster: what it lends to trials."""

    node_id: str
    address: str
    hardware: Hardware
    """All that it has."""

    @property
    def kind(self) -> str:
        """Its devices' kind."""
        return self.hardware.device_kind


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialShape:
    """The devices of one trial, evenly on its nodes."""

    device_type: DeviceType
    devices_per_node: int
    num_nodes: int = 1

    @property
    def num_devices(self) -> int:
        """Ranks of a trial."""
        return self.devices_per_node * self.num_nodes

    def capacity(self, nodes: Sequence[ClusterNode]) -> int:
        """How many trials these nodes hold at once."""
        slots = [node.hardware.num_devices // self.devices_per_node for node in nodes]
        trials = sum(slots) // self.num_nodes
        # The nodes of one trial are different ones, so a node gives each trial one slot at most.
        while sum(min(slot, trials) for slot in slots) < trials * self.num_nodes:
            trials -= 1
        return trials

    def hardware(self, nodes: Sequence[ClusterNode]) -> Hardware:
        """What each trial has, whichever of these nodes it runs on: the least of them.

        Memory of the host and disk are those of one node, in proportion to the devices that a
        trial has of it, since other trials may have the rest.
        """

        def share(node: ClusterNode) -> Hardware:
            of_node = self.devices_per_node / node.hardware.num_devices
            return replace(
                node.hardware,
                host_memory_bytes=int(node.hardware.host_memory_bytes * of_node),
                nvme_free_bytes=int(node.hardware.nvme_free_bytes * of_node),
            )

        shares = [share(node) for node in nodes]
        host = min(each.host_memory_bytes for each in shares)
        device = min(each.device_memory_bytes for each in shares)
        return replace(
            shares[0],
            num_devices=self.num_devices,
            num_nodes=self.num_nodes,
            host_memory_bytes=host,
            device_memory_bytes=(
                device if self.device_type is DeviceType.CUDA else host // self.devices_per_node
            ),
            nvme_free_bytes=min(each.nvme_free_bytes for each in shares),
            supports_bf16=all(each.supports_bf16 for each in shares),
            supports_fp16=all(each.supports_fp16 for each in shares),
            supports_tf32=all(each.supports_tf32 for each in shares),
            supports_fp8=all(each.supports_fp8 for each in shares),
            compute_capability=min(
                filter(None, (s.compute_capability for s in shares)), default=None
            ),
        )


def chosen_kind(nodes: Sequence[ClusterNode], wanted: str | None) -> str:
    """The kind of device that a study is about: the wanted one, or the most numerous.

    GPUs go before CPUs, however many of these there are.

    Raises:
        ConfigError: there is no device, or none of the wanted kind.
    """
    counts: dict[str, tuple[bool, int]] = {}
    for node in nodes:
        hardware = node.hardware
        _, count = counts.get(node.kind, (False, 0))
        is_gpu = hardware.device_type is DeviceType.CUDA
        counts[node.kind] = is_gpu, count + hardware.num_devices
    if not counts:
        raise ConfigError("--ray: no node of this cluster lends GPUs or CPUs")
    if wanted is None:
        return max(counts, key=lambda kind: counts[kind])
    if wanted not in counts:
        there = ", ".join(f"{count} x {kind}" for kind, (_, count) in counts.items())
        raise ConfigError(f"--device-kind {wanted}: this cluster has {there}")
    return wanted


def trial_shape(
    nodes: Sequence[ClusterNode], *, num_devices: int | None, num_nodes: int | None
) -> TrialShape:
    """Packed on one node where a trial fits, spread over as few as it takes where it does not.

    Args:
        nodes: those of the study's device kind.
        num_devices: of a trial; a whole node's where left out, without GPUs two ranks.
        num_nodes: over how many nodes a trial is spread.

    Raises:
        ConfigError: the nodes cannot hold such a trial; the message names the flag.
    """
    for flag, value in (("--gpus-per-trial", num_devices), ("--nodes-per-trial", num_nodes)):
        if value is not None and value < 1:
            raise ConfigError(f"{flag} must be at least 1, got {value}")
    device_type = nodes[0].hardware.device_type
    counts = [node.hardware.num_devices for node in nodes]
    if num_devices is None:
        each = max(counts)
        each = each if device_type is DeviceType.CUDA else min(each, _CPU_RANKS)
        num_devices = each * (num_nodes or 1)
    if num_nodes is None:
        num_nodes = next(
            (n for n in range(1, len(nodes)) if _fits(counts, num_devices, n)), len(nodes)
        )
    if num_devices % num_nodes:
        raise ConfigError(
            f"--gpus-per-trial {num_devices} is not divisible by {num_nodes} nodes; "
            "choose another, or --nodes-per-trial"
        )
    shape = TrialShape(
        device_type=device_type, devices_per_node=num_devices // num_nodes, num_nodes=num_nodes
    )
    if shape.capacity(nodes) == 0:
        there = ", ".join(str(count) for count in sorted(counts, reverse=True)[:8])
        raise ConfigError(
            f"--gpus-per-trial {num_devices} on {num_nodes} node(s): the nodes of kind "
            f"{nodes[0].kind} have {there} device(s); choose fewer"
        )
    return shape


def _fits(counts: Sequence[int], num_devices: int, num_nodes: int) -> bool:
    """Whether so many nodes hold so many devices evenly."""
    each, rest = divmod(num_devices, num_nodes)
    return rest == 0 and sum(count >= each for count in counts) >= num_nodes
