"""A trial as Tune runs it: an actor in the trial's placement group, with ranks on its nodes.

The actor has the first node's ranks, and a seat on each other node has those there. It outlives
its trial: the next one in the same place finds the servers warm.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import psutil
import ray
from ray.tune import PlacementGroupFactory, Trainable
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from autotune.cluster.messages import TrialOrder, TrialReport
from autotune.cluster.node_software import require_versions
from autotune.cluster.rank_host import RankHost, ShareEnd
from autotune.errors import ConfigError, LaunchError
from autotune.launch.rank_process import ALL_RANKS, NodeShare, RanksEnd, outcome_of
from autotune.machine.hardware import Hardware
from autotune.trials.trial import Failure, FailureKind, TrialSpec

__all__ = ["RayTrial"]

_REPORT_S = 1.0
"""A trial that has nothing to tell says so this often, and can be stopped at that moment."""

_LOST_PARTNER = "it was waiting for ranks of another node, which had failed"


class RayTrial(Trainable):  # type: ignore[misc]  # Ray is untyped
    """One trial, and those that follow it in the same place."""

    @classmethod
    def default_resource_request(cls, config: dict[str, str]) -> PlacementGroupFactory:
        """What Tune reserves for it."""
        return PlacementGroupFactory(**TrialOrder.from_config(config).placement)

    def setup(self, config: dict[str, str]) -> None:
        """Warm a server on each node of the placement group.

        Raises:
            LaunchError: a server does not start.
        """
        self._order = TrialOrder.from_config(config)
        self._rest: dict[Any, int] = {}
        self._ends: list[ShareEnd] = []
        self._is_running = False
        hardware = self._order.hardware.host
        model_type = self._order.spec.workload.model.model_type
        arguments = {"model_type": model_type, "study": self._order.study}
        versions = dict(self._order.versions)
        group = ray.util.get_current_placement_group()
        bundles = self._order.placement["bundles"]
        self._seats = [
            _seats.options(
                num_cpus=bundles[index].get("CPU", 0),
                num_gpus=bundles[index].get("GPU", 0),
                max_concurrency=2,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    group, placement_group_bundle_index=index
                ),
            ).remote(hardware, versions=versions, **arguments)
            for index in range(1, len(bundles))
        ]
        warming = [seat.warm.remote() for seat in self._seats]
        _check_node(self._order.hardware, self._order.versions)
        self._host = RankHost(hardware, **arguments)
        try:
            self._host.warm()
            ray.get(warming)
        except BaseException:
            self._host.close()
            raise

    def reset_config(self, new_config: dict[str, str]) -> bool:
        """Take the next trial."""
        self._stop("another trial takes its place")
        self._order = TrialOrder.from_config(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Wait for news of the trial, a second at most."""
        if not self._is_running:
            self._begin()
        events, end = self._host.news(_REPORT_S)
        if end is not None:
            self._ends.append(end)
            return self._last_report(events)
        self._look_at_the_others()
        return TrialReport(events=tuple(events)).to_result()

    def _begin(self) -> None:
        spec, timeout_s = self._order.spec, self._order.timeout_s
        self._is_running, self._ends = True, []
        if not self._seats:
            self._host.begin(spec, ALL_RANKS, timeout_s=timeout_s)
            return
        num_ranks = self._order.hardware.devices_per_node
        address = f"{_own_address()}:{_free_port()}"
        first, *others = (
            NodeShare(first_rank=node * num_ranks, num_ranks=num_ranks, address=address)
            for node in range(len(self._seats) + 1)
        )
        self._host.begin(spec, on_this_node(first), timeout_s=timeout_s)
        self._rest = {
            seat.run.remote(spec.to_dict(), share, timeout_s): number
            for number, (seat, share) in enumerate(zip(self._seats, others, strict=True))
        }

    def _look_at_the_others(self) -> None:
        """Once the ranks of a node have failed, those of the others wait in vain."""
        for answer in ray.wait(list(self._rest), timeout=0)[0] if self._rest else ():
            del self._rest[answer]
            end = ray.get(answer)
            self._ends.append(end)
            if end.ranks.failure is not None:
                self._host.ask_to_stop(_LOST_PARTNER)

    def _last_report(self, events: list[Mapping[str, Any]]) -> dict[str, Any]:
        """After this node's ranks have ended: wait for the others, unless they wait in vain."""
        if self._ends[-1].ranks.failure is not None:
            for seat in self._seats:
                seat.ask_to_stop.remote(_LOST_PARTNER)
        self._ends += ray.get(list(self._rest))
        self._rest, self._is_running = {}, False
        ends = sorted(
            (_without_partner(end.ranks) for end in self._ends),
            key=lambda end: end.ranks[0].number if end.ranks else 0,
        )
        files: dict[str, str] = {}
        for end in self._ends:
            files |= end.files
        outcome = outcome_of(self._order.spec, ends)
        if outcome.measurement is not None:
            measurement = replace(
                outcome.measurement,
                disturbance=max(end.others.share for end in self._ends),
                others_device_bytes=max(end.others.device_bytes for end in self._ends),
            )
            outcome = replace(outcome, measurement=measurement)
        return TrialReport(events=tuple(events), outcome=outcome, files=files).to_result()

    def _stop(self, reason: str) -> None:
        for seat in self._seats:
            seat.ask_to_stop.remote(reason)
        self._host.stop(reason)
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(list(self._rest))
        self._rest, self._is_running = {}, False

    def cleanup(self) -> None:
        """Leave no process of any trial behind."""
        self._stop("the search has ended")
        self._host.close()
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get([seat.close.remote() for seat in self._seats])
        for seat in self._seats:
            ray.kill(seat)


class _Seat:
    """The ranks of a trial on a node that is not its first."""

    def __init__(
        self, hardware: Hardware, *, versions: dict[str, str], model_type: str, study: str
    ) -> None:
        self._host = RankHost(hardware, model_type=model_type, study=study)
        self._hardware, self._versions = hardware, versions

    def warm(self) -> None:
        """Start the server."""
        _check_node(self._hardware, self._versions)
        self._host.warm()

    def run(self, spec: dict[str, Any], share: NodeShare, timeout_s: float) -> ShareEnd:
        """Run these ranks to their end."""
        self._host.begin(TrialSpec.from_dict(spec), on_this_node(share), timeout_s=timeout_s)
        while True:
            _, end = self._host.news(_REPORT_S)
            if end is not None:
                return end

    def ask_to_stop(self, reason: str) -> None:
        """Have them killed."""
        self._host.ask_to_stop(reason)

    def close(self) -> None:
        """Leave no process behind."""
        self._host.close()


_seats: Any = ray.remote(_Seat)


def _check_node(hardware: Hardware, versions: Mapping[str, str]) -> None:
    """A trial may land on a node that joined only now, and has not been asked what it is.

    Raises:
        LaunchError: it is of another kind than the study is about, or has other software.
    """
    from autotune.drivers.ray_tune.cluster import kind_of_this_node

    kind = kind_of_this_node(hardware.device_type)
    if kind != hardware.device_kind:
        raise LaunchError(
            f"node {_own_address()} has {kind}, and the study is about {hardware.device_kind}"
        )
    try:
        require_versions(versions)
    except ConfigError as error:
        raise LaunchError(f"node {_own_address()}: {error}") from error


def _without_partner(end: RanksEnd) -> RanksEnd:
    """Ranks that were stopped since those of another node had failed lost their partners."""
    if end.stopped is None or end.stopped.message != _LOST_PARTNER:
        return end
    lost = Failure(kind=FailureKind.COMMUNICATION, message=_LOST_PARTNER, rank=end.stopped.rank)
    return replace(end, stopped=lost)


def _own_address() -> str:
    address: str = ray.util.get_node_ip_address()
    return address


def _free_port() -> int:
    """A port of this node that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind((_own_address(), 0))
        return int(probe.getsockname()[1])


def on_this_node(share: NodeShare) -> NodeShare:
    """The share with the interface through which Ray reaches this node."""
    own = _own_address()
    for interface, addresses in psutil.net_if_addrs().items():
        if any(address.address == own for address in addresses):
            return replace(share, interface=interface)
    raise LaunchError(f"no network interface of this node has Ray's address of it, {own}")
