"""Searches over a real Ray cluster: several nodes of this machine, real engines on their CPUs.

One cluster for all tests; each finds two nodes of two CPUs, whatever the tests before it did.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from command_line import autotune, autotune_process
from conftest import RunTrial
from ray_nodes import RayNodes, is_rank, our_processes, ray_nodes, wait_until

from autotune.drivers.ray_tune import RayCluster
from autotune.errors import ConfigError
from autotune.question.workload import Workload
from autotune.space.strategy import Strategy

pytestmark = [pytest.mark.ray, pytest.mark.slow]

_TOLD = ("COMPLETE", "PRUNED")

_SPACE = """
knobs:
  zero_stage: {values: [1, 2, 3]}
  micro_batch_size: {values: [1, 2]}
"""
_SEARCH = (
    *("search", "--model", "tiny", "--seq-len", "32", "--space", "space.yaml", "--json"),
    *("--sampler", "grid", "--confirm", "0"),
)


_MIXED_SPACE = "knobs: {zero_stage: [1], micro_batch_size: [1, 2]}\n"
_MIXED_SEARCH = (
    *("search", "--model", "tiny", "--seq-len", "32", "--global-batch", "8", "--json"),
    *("--space", "space.yaml", "--sampler", "grid", "--confirm", "0", "--budget", "3m"),
)


_NUM_NODES = 2


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    """The cluster of all tests."""
    with ray_nodes(num_nodes=_NUM_NODES) as nodes:
        yield nodes


@pytest.fixture
def cluster(nodes: RayNodes) -> Iterator[RayNodes]:
    """Two nodes of two CPUs; nodes that a test adds or kills are taken out and replaced."""
    alike = list(nodes.nodes)
    yield nodes
    for node in [node for node in nodes.nodes if node not in alike]:
        nodes.kill(node)
    for _ in range(_NUM_NODES - len(nodes.nodes)):
        nodes.add()
    nodes.wait()


@pytest.fixture(autouse=True)
def no_search_left() -> Iterator[None]:
    """A test that fails leaves no search to disturb the next."""
    yield
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if "search" in child.cmdline():
                child.kill()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the command runs, with a small search space."""
    (tmp_path / "space.yaml").write_text(_SPACE)
    return tmp_path


def _states(study: Path) -> list[tuple[str, str]]:
    """Of each trial in the record: its state, and its strategy in words."""
    with sqlite3.connect(f"file:{study / 'study.db'}?mode=ro", uri=True) as database:
        return database.execute(
            "select state, value_json from trials join trial_user_attributes using (trial_id) "
            "where key = 'strategy_in_words' order by number"
        ).fetchall()


def _num(study: Path, *states: str) -> int:
    try:
        return sum(found in states for found, _ in _states(study))
    except sqlite3.OperationalError:  # the search has not made the file or its tables yet
        return 0


def _placement_groups(address: str) -> set[str]:
    """The states of all that there ever were."""
    import ray
    from ray.util import placement_group_table

    ray.init(address=address, logging_level="ERROR")
    try:
        return {group["state"] for group in placement_group_table().values()}
    finally:
        ray.shutdown()


def _ran_once_each(trials: list[dict[str, Any]], num: int) -> None:
    """Each strategy came to an end of its own, once; some are ended early as no improvement."""
    ended = [t for t in trials if t["duration_s"] > 0 and t["failure"] is None]
    assert len({json.dumps(trial["strategy"]) for trial in ended}) == len(ended) == num


def test_ranks_of_two_nodes_train_as_those_of_one(
    cluster: RayNodes, folder: Path, run_trial: RunTrial, tiny: Workload
) -> None:
    (folder / "space.yaml").write_text("knobs: {zero_stage: [1], micro_batch_size: [2]}\n")
    where = ("--ray", cluster.address, "--gpus-per-trial", "4")
    ran = autotune(
        *_SEARCH, *where, "--global-batch", "8", "--budget", "2m", "--out", "study", folder=folder
    )
    assert ran.returncode == 0, ran.stderr
    assert "each on 2 nodes of 2 x cpu" in ran.stderr
    [trial] = json.loads(ran.stdout)["trials"]
    spec = json.loads((folder / "study" / "trials" / "0000" / "trial.json").read_text())
    assert spec["num_ranks"] == 4
    logs = {path.name for path in (folder / "study" / "trials" / "0000").glob("rank*.jsonl")}
    assert logs == {f"rank{rank}.jsonl" for rank in range(4)}
    strategy = Strategy.from_dict(trial["strategy"])
    alone = run_trial(num_ranks=4, **strategy.to_dict())
    assert alone.measurement is not None
    measured = trial["measurement"]["losses"][:3]
    assert measured == pytest.approx(alone.measurement.losses[:3], rel=1e-5)
    launch = next((folder / "study" / "exports").glob("*/launch.sh")).read_text()
    assert "--num_nodes 2" in launch
    assert "--num_accelerators 2" in launch


def test_a_killed_driver_leaves_nothing_behind_and_goes_on(
    cluster: RayNodes, folder: Path
) -> None:
    arguments = (
        *(*_SEARCH, "--global-batch", "64", "--budget", "5m", "--out", "study"),
        *("--ray", cluster.address, "--max-concurrent", "1"),
    )
    driver = autotune_process(*arguments, folder=folder)
    study = folder / "study"
    wait_until(
        lambda: _num(study, "COMPLETE", "PRUNED") >= 1 and any(map(is_rank, our_processes())), 90
    )
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    told = [words for state, words in _states(study) if state in _TOLD]
    wait_until(lambda: not our_processes(), 60)
    ran = autotune(*arguments, "--resume", folder=folder)
    assert ran.returncode == 0, ran.stderr
    trials = json.loads(ran.stdout)["trials"]
    assert [words for state, words in _states(study) if state in ("COMPLETE", "PRUNED")][
        : len(told)
    ] == told
    _ran_once_each(trials, 6)
    failures = [trial["failure"]["kind"] for trial in trials if trial["failure"]]
    assert failures == ["interrupted"]


def test_a_lost_nodes_trial_runs_elsewhere(cluster: RayNodes, folder: Path) -> None:
    study = folder / "study"
    driver = autotune_process(
        *(*_SEARCH, "--global-batch", "256", "--budget", "5m", "--out", "study"),
        *("--ray", cluster.address),
        folder=folder,
    )
    # A trial of two ranks on each of the two nodes.
    wait_until(lambda: sum(map(is_rank, our_processes())) == 4, 200)
    cluster.kill(cluster.nodes[0])
    wait_until(lambda: _num(study, "FAIL") == 1, 90)
    stdout, stderr = driver.communicate(timeout=200)
    assert driver.returncode == 0, stderr
    trials = json.loads(stdout)["trials"]
    _ran_once_each(trials, 6)
    [lost] = [trial for trial in trials if trial["failure"]]
    assert lost["failure"]["kind"] == "lost_node"
    assert "is lost" in stderr
    wait_until(lambda: not our_processes(), 60)
    assert _placement_groups(cluster.address) == {"REMOVED"}
    assert "ray.tune" in (study / "ray.log").read_text()
    assert "ray.tune" not in stderr


def test_a_node_that_joins_makes_room_for_one_more_trial(cluster: RayNodes) -> None:
    with RayCluster(cluster.address) as before:
        capacity = before.capacity
        notes: list[str] = []
        joined = cluster.add()

        def has_room() -> bool:
            before.refresh(notes.append)
            return before.capacity == capacity + 1

        wait_until(has_room, 60)
        assert any("has joined: 2 x cpu" in note for note in notes)
        cluster.kill(joined)
        wait_until(lambda: before.refresh(notes.append) or before.capacity == capacity, 60)


def test_a_study_belongs_to_one_kind_of_device(cluster: RayNodes) -> None:
    cluster.add(labels={"device-kind": "old-cpu"})
    with RayCluster(cluster.address) as numerous:
        assert numerous.kind == "cpu"
        assert [node.kind for node in numerous.others] == ["old-cpu"]
        assert numerous.capacity == len(numerous.nodes)
        [selector] = numerous.placement["bundle_label_selector"]
        assert selector["ray.io/node-id"] == f"!in({numerous.others[0].node_id})"
    with RayCluster(cluster.address, device_kind="old-cpu") as chosen:
        assert chosen.hardware.device_kind == "old-cpu"
        assert chosen.capacity == 1
    with pytest.raises(ConfigError, match="--device-kind H100: this cluster has"):
        RayCluster(cluster.address, device_kind="H100")


def test_a_cluster_started_here_listens_on_loopback_alone(folder: Path) -> None:
    (folder / "space.yaml").write_text("knobs: {zero_stage: [1], micro_batch_size: [2]}\n")
    arguments = (*_SEARCH, "--global-batch", "8", "--budget", "2m", "--out", "study")
    driver = autotune_process(*arguments, "--ray", "local", folder=folder)

    def listening() -> set[tuple[str, str]]:
        below = [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]
        return {
            (connection.laddr.ip.removeprefix("::ffff:"), process.name())
            for process in below
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        }

    wait_until(lambda: (folder / "study" / "study.db").exists(), 90)
    assert {ip for ip, _ in listening()} == {"127.0.0.1"}, listening()
    stdout, stderr = driver.communicate(timeout=90)
    assert driver.returncode == 0, stderr
    assert "a Ray cluster of this machine alone" in stderr
    [trial] = json.loads(stdout)["trials"]
    assert trial["state"] == "complete"


@pytest.fixture
def mixed(cluster: RayNodes) -> RayNodes:
    """Two nodes of this machine's CPU, and one that says it is of another kind."""
    cluster.add(labels={"device-kind": "old-cpu"})
    return cluster


def _raylet(node: Any) -> int:
    """The process of Ray's that all others of a node descend from."""
    [raylet] = node.all_processes["raylet"]
    return int(raylet.process.pid)


def _searched(cluster: RayNodes, folder: Path, *more: str) -> tuple[int, str, str, set[int]]:
    """Exit status and streams of a search, and the raylets that its ranks descended from."""
    raylets = {_raylet(node) for node in cluster.nodes}
    used: set[int] = set()
    search = autotune_process(*_MIXED_SEARCH, "--ray", cluster.address, *more, folder=folder)

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
    mixed: RayNodes, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    record = other / "deepspeed-0.0.1.dist-info" / "METADATA"
    record.parent.mkdir(parents=True)
    record.write_text("Metadata-Version: 2.1\nName: deepspeed\nVersion: 0.0.1\n")
    path = os.pathsep.join([str(other), os.environ.get("PYTHONPATH", "")])
    mixed.add(env_vars={"PYTHONPATH": path})
    _is_refused(mixed)
    _runs_on_the_first_two(mixed, tmp_path)


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
    (folder / "space.yaml").write_text(_MIXED_SPACE)
    status, stdout, stderr, used = _searched(cluster, folder, "--out", "study")
    assert status == 0, stderr
    assert "2 nodes, 4 x cpu" in stderr
    assert "Not used: nodes with old-cpu; --device-kind old-cpu uses them" in stderr
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


def test_a_search_runs_on_the_kind_that_is_asked_for(mixed: RayNodes, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(_MIXED_SPACE)
    status, stdout, stderr, used = _searched(mixed, tmp_path, "--device-kind", "old-cpu")
    assert status == 0, stderr
    assert "1 node, 2 x old-cpu" in stderr
    assert _has_run_all(stdout)
    assert used == {_raylet(mixed.nodes[2])}
