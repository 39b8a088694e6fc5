"""Searches over a Ray cluster whose nodes are not alike: in their devices, or in what they run."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from command_line import autotune_process
from ray_nodes import RayNodes, our_processes, wait_until

from autotune.drivers.ray_tune import RayCluster

pytestmark = [pytest.mark.ray, pytest.mark.slow]

_SPACE = "knobs: {zero_stage: [1], micro_batch_size: [1, 2]}\n"
_SEARCH = (
    *("search", "--model", "tiny", "--seq-len", "32", "--global-batch", "8", "--json"),
    *("--space", "space.yaml", "--sampler", "grid", "--confirm", "0", "--budget", "3m"),
)


@pytest.fixture(scope="module", name="cluster")
def mixed_cluster(cluster: RayNodes) -> Iterator[RayNodes]:
    """Two nodes of this machine's CPU, and one that says it is of another kind."""
    odd = cluster.add(labels={"device-kind": "old-cpu"})
    yield cluster
    cluster.kill(odd)


def _raylet(node: Any) -> int:
    """The process of Ray's that all others of a node descend from."""
    [raylet] = node.all_processes["raylet"]
    return int(raylet.process.pid)


def _searched(cluster: RayNodes, folder: Path, *more: str) -> tuple[int, str, str, set[int]]:
    """Exit status and streams of a search, and the raylets that its ranks descended from."""
    raylets = {_raylet(node) for node in cluster.nodes}
    used: set[int] = set()
    search = autotune_process(*_SEARCH, "--ray", cluster.address, *more, folder=folder)

    def has_ended() -> bool:
        for process in our_processes():
            with contextlib.suppress(psutil.Error):
                used.update(raylets & {parent.pid for parent in process.parents()})
        return search.poll() is not None

    wait_until(has_ended, 200)
    stdout, stderr = search.communicate()
    return search.returncode, stdout, stderr, used


def _has_run_all(stdout: str) -> bool:
    """Whether each of the strategies came to an end of its own."""
    ends = [trial["state"] for trial in json.loads(stdout)["trials"]]
    return len(ends) >= 2 and set(ends) <= {"complete", "pruned"} and "complete" in ends


def test_a_search_runs_on_the_most_numerous_kind_alone_and_with_its_own_software(
    cluster: RayNodes, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    record = other / "deepspeed-0.0.1.dist-info" / "METADATA"
    record.parent.mkdir(parents=True)
    record.write_text("Metadata-Version: 2.1\nName: deepspeed\nVersion: 0.0.1\n")
    path = os.pathsep.join([str(other), os.environ.get("PYTHONPATH", "")])
    refused = cluster.add(env_vars={"PYTHONPATH": path})
    try:
        _is_refused(cluster)
        _runs_on_the_first_two(cluster, tmp_path)
    finally:
        cluster.kill(refused)


def _is_refused(cluster: RayNodes) -> None:
    """The node with another version is, and the message says why."""
    with RayCluster(cluster.address) as reached:
        assert reached.capacity == 2
        [(node_id, why)] = reached.refused.items()
        assert "deepspeed 0.0.1 (where the search runs: " in why
        assert "install the same on all nodes" in why
        [selector] = reached.placement["bundle_label_selector"]
        assert node_id in selector["ray.io/node-id"]


def _runs_on_the_first_two(cluster: RayNodes, folder: Path) -> None:
    """A search does, and says which nodes it does not use."""
    (folder / "space.yaml").write_text(_SPACE)
    status, stdout, stderr, used = _searched(cluster, folder, "--out", "study")
    assert status == 0, stderr
    assert "2 nodes, 4 x cpu" in stderr
    assert "Not used: nodes with old-cpu; --device-kind old-cpu would use them" in stderr
    assert "deepspeed 0.0.1" in stderr
    assert _has_run_all(stdout)
    assert used
    assert used <= {_raylet(node) for node in cluster.nodes[:2]}

    # A study goes on with the kind that it began with, or not at all.
    mixed = ("--device-kind", "old-cpu", "--out", "study", "--resume")
    status, _, stderr, used = _searched(cluster, folder, *mixed)
    assert status == 2
    assert "old-cpu" in stderr
    assert not used


def test_a_search_runs_on_the_kind_that_is_asked_for(cluster: RayNodes, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(_SPACE)
    status, stdout, stderr, used = _searched(cluster, tmp_path, "--device-kind", "old-cpu")
    assert status == 0, stderr
    assert "1 node, 2 x old-cpu" in stderr
    assert _has_run_all(stdout)
    assert used == {_raylet(cluster.nodes[2])}
