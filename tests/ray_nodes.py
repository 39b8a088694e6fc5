"""A Ray cluster of several nodes on this machine, whose nodes can be killed and added."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

__all__ = ["RayNodes", "is_rank", "our_processes", "ray_nodes", "wait_until"]

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# The nodes would each look for a token, and write one where there is none.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

# Ray's workers are niced by 15: beside a second worker of pytest their ranks would starve.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112

# Told apart from what others run on this machine, the launcher of other tests among them.
os.environ["AUTOTUNE_TEST_RUN"] = str(os.getpid())

_QUICK_DEATH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
"""A dead node is missed after two seconds instead of half a minute."""


class RayNodes:
    """A head that lends nothing, and nodes of two CPUs each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "_system_config": _QUICK_DEATH,
            },
        )
        self.nodes: list[Any] = []

    @property
    def address(self) -> str:
        """Of the head."""
        return str(self._cluster.address)

    def add(self, num_cpus: int = 2, **more: Any) -> Any:
        """One more node."""
        node = self._cluster.add_node(num_cpus=num_cpus, wait=True, **more)
        self.nodes.append(node)
        return node

    def kill(self, node: Any) -> None:
        """As a machine that loses power: nothing on it says goodbye."""
        self.nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def wait(self) -> None:
        """Until the cluster knows which of its nodes are there."""
        self._cluster.wait_for_nodes()

    def close(self) -> None:
        """End all of it."""
        with contextlib.suppress(Exception):
            self._cluster.shutdown()


@contextlib.contextmanager
def ray_nodes(*, num_nodes: int) -> Iterator[RayNodes]:
    """A cluster for a while."""
    cluster = RayNodes()
    try:
        for _ in range(num_nodes):
            cluster.add()
        yield cluster
    finally:
        cluster.close()


def our_processes() -> list[psutil.Process]:
    """Warm servers and ranks below this test run, on whichever node of its clusters."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if (
                "autotune.worker.server" in process.cmdline()
                and process.environ().get("AUTOTUNE_TEST_RUN") == os.environ["AUTOTUNE_TEST_RUN"]
                and not _is_of_launcher(process)
            ):
                found.append(process)
    return found


def _is_of_launcher(process: psutil.Process) -> bool:
    """Whether the tests' own launcher, which other tests share, started it or what forked it."""
    parent = process.parent()
    server = parent if parent and "autotune.worker.server" in parent.cmdline() else process
    return server.ppid() == os.getpid()


def is_rank(process: psutil.Process) -> bool:
    """Whether it was forked from a server."""
    with contextlib.suppress(psutil.Error):
        parent = process.parent()
        return parent is not None and "autotune.worker.server" in parent.cmdline()
    return False


def wait_until(condition: Callable[[], Any], timeout_s: float) -> Any:
    """What the condition gives once it holds."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {timeout_s:.0f} s: {condition}")
