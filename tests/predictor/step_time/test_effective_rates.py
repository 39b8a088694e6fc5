"""What a machine is taken to attain: measured rates first, data sheets otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autotune.machine.hardware import DEVICE_KINDS, Hardware
from autotune.machine.hardware_spec import read_hardware
from autotune.machine.rates import Rates
from autotune.predictor import AnalyticPredictor
from autotune.predictor.step_time.effective_rates import COLLECTIVE_S, effective_rates
from autotune.question.workload import Workload, load_model_shape
from autotune.space.strategy import Strategy

MEASURED = Rates(
    matmul_flops_per_s=1e14,
    memory_bytes_per_s=1e12,
    kernel_launch_s=5e-6,
    host_to_device_bytes_per_s=1e10,
    device_to_host_bytes_per_s=2e10,
    host_memory_bytes_per_s=5e10,
    nvme_bytes_per_s=1e9,
    link_bytes_per_s=1e11,
    collective_s=3e-5,
)


def machine(text: str) -> Hardware:
    return read_hardware(text).host


@pytest.mark.parametrize("name", DEVICE_KINDS)
def test_no_device_attains_more_than_its_data_sheet(name: str) -> None:
    host, kind = machine(f"2x{name}"), DEVICE_KINDS[name]
    rates = effective_rates(host)

    assert 0 < rates.attention_flops_per_s < rates.matmul_flops_per_s < kind.flops_per_s
    assert rates.traffic_bytes_per_s < rates.stream_bytes_per_s < kind.memory_bytes_per_s
    assert rates.link_bytes_per_s < max(kind.nvlink_bytes_per_s, kind.pcie_bytes_per_s)
    assert rates.to_host_bytes_per_s < kind.pcie_bytes_per_s


def test_what_was_measured_goes_before_the_data_sheet() -> None:
    rates = effective_rates(replace(machine("H100-80GB"), rates=MEASURED))

    assert rates.matmul_flops_per_s == MEASURED.matmul_flops_per_s
    assert rates.stream_bytes_per_s == MEASURED.memory_bytes_per_s
    assert rates.to_device_bytes_per_s == MEASURED.host_to_device_bytes_per_s
    assert rates.to_host_bytes_per_s == MEASURED.device_to_host_bytes_per_s
    assert rates.host_bytes_per_s == MEASURED.host_memory_bytes_per_s
    assert rates.nvme_bytes_per_s == MEASURED.nvme_bytes_per_s
    assert rates.link_bytes_per_s == MEASURED.link_bytes_per_s
    assert COLLECTIVE_S + rates.level_s == pytest.approx(MEASURED.collective_s)


def test_a_device_that_is_half_as_fast_as_measured_takes_longer() -> None:
    workload = Workload(model=load_model_shape("7B"), seq_len=1024, global_batch_size=8)
    strategy = Strategy(zero_stage=1, micro_batch_size=8)
    host = machine("H100-80GB")
    slow = replace(host, rates=Rates(matmul_flops_per_s=host.flops_per_s / 4))

    before = AnalyticPredictor(workload, host).predict(strategy).step_time_s
    assert AnalyticPredictor(workload, slow).predict(strategy).step_time_s > 1.5 * before


def test_pcie_links_neighbours_where_there_is_no_nvlink() -> None:
    assert effective_rates(machine("2xRTX4090")).link_bytes_per_s < 2e10
    assert effective_rates(machine("2xA100-80GB")).link_bytes_per_s > 1e11


def test_a_host_that_launches_faster_is_faster_by_as_much() -> None:
    usual = Rates(kernel_launch_s=14.4e-6)
    fast = Rates(kernel_launch_s=7.2e-6)
    one, other = (effective_rates(replace(machine("H100-80GB"), rates=r)) for r in (usual, fast))
    assert one.launch_s == effective_rates(machine("H100-80GB")).launch_s
    assert other.launch_s == pytest.approx(one.launch_s / 2)
