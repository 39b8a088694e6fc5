"""How hardware that is not here is named."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from autotune.errors import ConfigError
from autotune.machine.hardware import DEVICE_KINDS, GIB
from autotune.machine.hardware_spec import assumed_host_bytes, read_hardware
from autotune.machine.rates import Rates

OWN = """\
device: MyGPU
count: 8
memory_gib: 96
tflops: 400
bandwidth_gb_per_s: 2000
host_memory_gib: 1024
fp8: true
"""


@pytest.mark.parametrize("name", DEVICE_KINDS)
def test_every_known_kind_can_be_asked_for(name: str) -> None:
    kind, host = DEVICE_KINDS[name], read_hardware(f"4x{name}").host
    assert (host.device_kind, host.num_devices) == (name, 4)
    assert host.device_memory_bytes == kind.memory_bytes
    assert host.flops_per_s == kind.flops_per_s
    assert host.supports_fp8 == kind.supports_fp8


@pytest.mark.parametrize(
    "text", ["2xRTX4090", "2 x RTX 4090", "2\u00d7rtx-4090", "2X rtx4090", "2*RTX_4090"]
)
def test_case_blanks_and_dashes_do_not_matter(text: str) -> None:
    assert str(read_hardware(text)) == "2 x RTX4090"


def test_a_kind_alone_is_one_device() -> None:
    assert str(read_hardware("L40S")) == "1 x L40S"


def test_the_beginning_of_a_name_will_do_where_it_is_the_only_one() -> None:
    assert str(read_hardware("8xH100")) == "8 x H100-80GB"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("8xA100", "may be any of A100-80GB, A100-80GB-PCIe, A100-40GB"),
        ("8xH1000", "did you mean H100-80GB? Known are B200,"),
        ("xyz", "known are B200, H200, H100-80GB"),
        ("0xH100-80GB", "devices must be at least 1, got 0"),
        ("-1xH100-80GB", "devices must be at least 1, got -1"),
        ("8x", "names no device"),
        ("", "names no device"),
        ("no-such.yaml", "no such file"),
    ],
)
def test_wrong_names_get_one_line_that_names_the_flag(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match="--hardware") as caught:
        read_hardware(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nodes_and_host_memory_are_checked() -> None:
    with pytest.raises(ConfigError, match="--nodes must be at least 1, got 0"):
        read_hardware("L4", num_nodes=0)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="--host-memory must be"):
            read_hardware("L4", host_memory_gib=wrong)


def test_nodes_multiply_ranks_and_host_memory() -> None:
    spec = read_hardware("8xH100-80GB", num_nodes=4, host_memory_gib=1024)
    assert str(spec) == "4 nodes of 8 x H100-80GB"
    assert spec.all_ranks.num_devices == 32
    assert spec.all_ranks.num_nodes == 4
    assert spec.all_ranks.devices_per_node == 8
    assert spec.all_ranks.host_memory_bytes == 1024 * GIB
    assert spec.all_ranks.device_memory_bytes == spec.host.device_memory_bytes


def test_host_memory_is_assumed_where_nobody_says_it() -> None:
    spec = read_hardware("8xH100-80GB")
    assert spec.has_assumed_host
    assert spec.host.host_memory_bytes == 8 * 240 * GIB
    assert assumed_host_bytes(180 * GIB, 2) == 2 * 256 * GIB
    assert not read_hardware("8xH100-80GB", host_memory_gib=512).has_assumed_host


def test_a_file_describes_a_device_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "host.yaml"
    path.write_text(OWN)
    spec = read_hardware(str(path))
    assert str(spec) == "8 x MyGPU"
    assert not spec.has_assumed_host
    assert spec.host.host_memory_bytes == 1024 * GIB
    assert spec.host.device_memory_bytes == 96 * GIB
    assert spec.host.flops_per_s == 400e12
    assert spec.host.memory_bytes_per_s == 2000e9
    assert (spec.host.supports_bf16, spec.host.supports_fp8) == (True, True)


def test_a_file_changes_what_the_data_sheet_says(tmp_path: Path) -> None:
    path = tmp_path / "host.yaml"
    path.write_text("device: A100-80GB\ncount: 2\nmemory_gib: 60\n")
    host = read_hardware(str(path)).host
    assert host.device_memory_bytes == 60 * GIB
    assert host.flops_per_s == DEVICE_KINDS["A100-80GB"].flops_per_s
    assert host.host_memory_bytes == 2 * 180 * GIB


def test_the_flag_goes_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "host.yaml"
    path.write_text(OWN)
    assert read_hardware(str(path), host_memory_gib=64).host.host_memory_bytes == 64 * GIB


def test_a_file_carries_rates_that_were_measured(tmp_path: Path) -> None:
    path = tmp_path / "host.yaml"
    path.write_text(
        "device: L40S\nrates:\n  matmul_tflops: 300\n  memory_gb_per_s: 700\n"
        "  kernel_launch_us: 4\n  nvme_gb_per_s: 6.5\n  collective_us: 16\n"
    )
    assert read_hardware(str(path)).host.rates == Rates(
        matmul_flops_per_s=300e12,
        memory_bytes_per_s=700e9,
        kernel_launch_s=4e-6,
        nvme_bytes_per_s=6.5e9,
        collective_s=16e-6,
    )
    assert read_hardware("L40S").host.rates is None


def test_every_rate_has_a_key_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "host.yaml"
    keys = (
        *("matmul_tflops", "memory_gb_per_s", "kernel_launch_us", "host_to_device_gb_per_s"),
        *("device_to_host_gb_per_s", "host_memory_gb_per_s", "nvme_gb_per_s", "link_gb_per_s"),
        "collective_us",
    )
    path.write_text("device: L4\nrates:\n" + "".join(f"  {key}: 1\n" for key in keys))
    rates = read_hardware(str(path)).host.rates
    assert rates is not None
    assert all(getattr(rates, field.name) for field in fields(Rates))


def test_a_disk_is_named_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "host.yaml"
    path.write_text("device: L4\nnvme_gib: 500\nnvme_path: /scratch\n")
    host = read_hardware(str(path)).host
    assert (host.nvme_path, host.nvme_free_bytes) == ("/scratch", 500 * GIB)
    assert read_hardware(str(path), nvme_gib=20).host.nvme_free_bytes == 20 * GIB
    given = read_hardware("L4", nvme_gib=20).host
    assert (given.nvme_path, given.nvme_free_bytes) == ("/local_nvme", 20 * GIB)
    assert read_hardware("L4").host.nvme_path is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("device: L4\nrates:\n  matmul_tflops: -1\n", "3: rates"),
        ("device: L4\nrates:\n  matmul: 1\n", "matmul"),
        ("device: L4\nnvme_gib: 0\n", "2: nvme_gib:"),
        ("devic: L4\n", "1: unknown key 'devic'; did you mean device?"),
        ("device: L4\ncount: 0\n", "2: count:"),
        ("device: L4\nmemory_gib: .inf\n", "2: memory_gib:"),
        ("device: Foo\ncount: 2\n", "memory_gib, tflops, bandwidth_gb_per_s to the file"),
        ("- L4\n", "must be a mapping"),
        ("device: [\n", "not valid YAML"),
        ("device: !!python/object/apply:os.getcwd []\n", "device"),
    ],
)
def test_mistakes_in_a_file_are_named_with_flag_and_line(
    text: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "host.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_hardware(str(path))
    assert str(caught.value).startswith(f"--hardware {path}")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
