"""How many devices a trial takes of which nodes, by arithmetic alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from sample_study import HARDWARE, LAPTOP

from autotune.cluster.messages import TrialOrder, TrialReport
from autotune.cluster.trial_shape import ClusterNode, chosen_kind, trial_shape
from autotune.drivers.ray_tune.cluster import node_hardware, placement_of
from autotune.errors import ConfigError
from autotune.machine.hardware import GIB, Hardware
from autotune.question.workload import Workload
from autotune.space.strategy import Strategy
from autotune.trials.trial import Failure, FailureKind, Outcome, Phase, TrialSpec


def nodes(*counts: int, like: Hardware = HARDWARE) -> list[ClusterNode]:
    return [
        ClusterNode(
            node_id=f"n{number}", address="10.0.0.1", hardware=replace(like, num_devices=count)
        )
        for number, count in enumerate(counts)
    ]


def test_a_trial_takes_a_whole_gpu_node_unless_told_otherwise() -> None:
    shape = trial_shape(nodes(8, 8), num_devices=None, num_nodes=None)
    assert (shape.num_devices, shape.num_nodes) == (8, 1)
    assert placement_of(shape)["bundles"] == [{"GPU": 8.0}]
    assert placement_of(shape)["strategy"] == "STRICT_PACK"


def test_a_trial_on_cpus_has_two_ranks_unless_told_otherwise() -> None:
    shape = trial_shape(nodes(16, like=LAPTOP), num_devices=None, num_nodes=None)
    assert placement_of(shape)["bundles"] == [{"CPU": 2.0}]


@pytest.mark.parametrize(
    ("counts", "devices", "spread"),
    [((8, 8), 4, 1), ((8, 8), 16, 2), ((8, 4, 4), 8, 1), ((4, 4, 4), 12, 3), ((8, 4), 8, 1)],
)
def test_it_is_packed_where_it_fits_and_spread_where_it_must(
    counts: Sequence[int], devices: int, spread: int
) -> None:
    shape = trial_shape(nodes(*counts), num_devices=devices, num_nodes=None)
    assert (shape.num_devices, shape.num_nodes) == (devices, spread)


def test_it_is_spread_where_that_is_asked_for() -> None:
    shape = trial_shape(nodes(8, 8), num_devices=4, num_nodes=2)
    assert placement_of(shape)["bundles"] == [{"GPU": 2.0}, {"GPU": 2.0}]
    assert placement_of(shape)["strategy"] == "STRICT_SPREAD"


@pytest.mark.parametrize(
    ("counts", "devices", "spread", "capacity"),
    [
        ((8, 8), 4, 1, 4),
        ((8, 3), 4, 1, 2),
        ((8, 8), 16, 2, 1),
        # The small node holds one share, and each trial needs one on another node.
        ((8, 2), 4, 2, 1),
        ((4, 4, 4), 4, 2, 3),
        ((8, 1, 1), 2, 2, 2),
    ],
)
def test_capacity_counts_trials_whose_nodes_are_different_ones(
    counts: Sequence[int], devices: int, spread: int, capacity: int
) -> None:
    shape = trial_shape(nodes(*counts), num_devices=devices, num_nodes=spread)
    assert shape.capacity(nodes(*counts)) == capacity


def test_no_nodes_hold_no_trial() -> None:
    shape = trial_shape(nodes(8), num_devices=4, num_nodes=None)
    assert shape.capacity([]) == 0


def test_a_trial_has_its_share_of_the_least_hosts_memory() -> None:
    small = replace(HARDWARE, num_devices=8, host_memory_bytes=256 * GIB)
    cluster = [*nodes(8), *nodes(8, like=small)]
    shape = trial_shape(cluster, num_devices=4, num_nodes=2)
    hardware = shape.hardware([*nodes(8), replace(cluster[1], hardware=small)])
    assert (hardware.num_devices, hardware.num_nodes) == (4, 2)
    assert hardware.host_memory_bytes == 64 * GIB


@pytest.mark.parametrize(
    ("devices", "spread", "words"),
    [
        (0, None, "--gpus-per-trial must be at least 1"),
        (4, 0, "--nodes-per-trial must be at least 1"),
        (32, None, "have 8, 8 device"),
        (5, 2, "not divisible by 2 nodes"),
        (8, 4, "have 8, 8 device"),
    ],
)
def test_what_the_nodes_cannot_hold_is_refused(
    devices: int, spread: int | None, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        trial_shape(nodes(8, 8), num_devices=devices, num_nodes=spread)


def test_gpus_go_before_cpus_and_the_most_numerous_kind_before_others() -> None:
    other = replace(HARDWARE, device_kind="A100-40GB")
    assert chosen_kind([*nodes(64, like=LAPTOP), *nodes(1)], None) == "H100-80GB"
    assert chosen_kind([*nodes(2), *nodes(4, 4, like=other)], None) == "A100-40GB"
    assert chosen_kind([*nodes(2), *nodes(4, 4, like=other)], "H100-80GB") == "H100-80GB"


def test_a_trial_computes_what_the_least_of_its_gpus_does() -> None:
    old, new = (replace(HARDWARE, compute_capability=(major, 0)) for major in (7, 9))
    shape = trial_shape(nodes(2, 2), num_devices=4, num_nodes=2)
    assert shape.hardware([*nodes(2, like=new), *nodes(2, like=old)]).compute_capability == (7, 0)
    assert shape.hardware(nodes(2, 2)).compute_capability is None


@pytest.mark.parametrize("label", ["old\ncpu", "\x1b[31mcpu", "$(id)", "[red]"])
def test_a_label_that_steers_a_script_or_terminal_is_no_kind(label: str) -> None:
    with pytest.raises(ConfigError, match="the device kind ") as caught:
        node_hardware(num_gpus=0, num_cpus=2, kind=label)
    assert str(caught.value).isprintable()


def test_an_order_reads_back_as_it_was_given(tiny: Workload) -> None:
    order = TrialOrder(
        number=7,
        spec=TrialSpec(workload=tiny, strategy=Strategy(zero_stage=2), num_ranks=4),
        hardware=replace(HARDWARE, compute_capability=(9, 0)),
        timeout_s=60.0,
        placement={"bundles": [{"GPU": 2.0}], "strategy": "STRICT_PACK"},
        study="study",
    )
    assert TrialOrder.from_config(order.to_config()) == order


def test_a_report_reads_back_as_it_was_given() -> None:
    failure = Failure(kind=FailureKind.CRASH, message="died", phase=Phase.STEP, rank=3)
    report = TrialReport(
        events=({"event": "ready", "setup_time_s": 1.5},),
        outcome=Outcome(failure=failure, duration_s=2.5),
        files={"rank0.err": "Traceback"},
    )
    result = report.to_result()
    assert result["done"]
    assert TrialReport.from_result(result) == report
    assert TrialReport.from_result({}) == TrialReport()
