"""Measured rates on disk: what is written is read, and nothing else is believed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from mutations import many, mutations, refusal
from sample_study import HARDWARE, LAPTOP

from autotune.errors import ConfigError, StorageError
from autotune.machine.rates import Rates
from autotune.machine.rates_file import rates_path, read_rates, with_measured_rates, write_rates

RATES = Rates(matmul_flops_per_s=6.5e14, link_bytes_per_s=1.8e11)
NOON = "2026-01-02T12:00:00+00:00"


@pytest.fixture(autouse=True)
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path


def test_what_is_written_is_read_again(configuration: Path) -> None:
    path = write_rates(HARDWARE, RATES, NOON)
    assert path == configuration / "autotune" / "rates" / "H100-80GB.json"
    stored = read_rates(HARDWARE)
    assert stored is not None
    assert (stored.rates, stored.measured_at, stored.num_devices) == (RATES, NOON, 2)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_where_nothing_was_measured_hardware_stays_as_it_is() -> None:
    assert read_rates(HARDWARE) is None
    assert with_measured_rates(HARDWARE) is HARDWARE


def test_rates_belong_to_one_kind_of_device() -> None:
    write_rates(HARDWARE, RATES, NOON)
    assert with_measured_rates(HARDWARE).rates == RATES
    assert with_measured_rates(replace(HARDWARE, num_devices=1)).rates == RATES
    assert with_measured_rates(replace(HARDWARE, device_kind="H200")).rates is None


def test_on_the_cpu_they_are_those_of_as_many_ranks() -> None:
    write_rates(LAPTOP, RATES, NOON)
    assert with_measured_rates(LAPTOP).rates == RATES
    assert with_measured_rates(replace(LAPTOP, num_devices=1)).rates is None


def test_a_name_of_nvml_makes_a_file_name() -> None:
    assert (
        rates_path(replace(HARDWARE, device_kind="NVIDIA T4/../x")).name == "NVIDIA-T4-..-x.json"
    )


@pytest.mark.parametrize(
    "damage",
    [
        "{",
        "[]",
        "{}",
        json.dumps({"device_kind": "x", "num_devices": 1, "measured_at": "", "rates": {"a": 1}}),
        json.dumps(
            {
                "device_kind": "x",
                "num_devices": 1,
                "measured_at": "",
                "rates": {"collective_s": -1.0},
            }
        ),
    ],
)
def test_a_damaged_file_is_named_with_what_to_type(damage: str) -> None:
    path = write_rates(HARDWARE, RATES, NOON)
    path.write_text(damage)
    with pytest.raises(ConfigError) as caught:
        with_measured_rates(HARDWARE)
    assert str(path) in str(caught.value)
    assert "autotune doctor --measure" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_named(configuration: Path) -> None:
    (configuration / "autotune").write_text("")
    with pytest.raises(StorageError, match="the rates cannot be written"):
        write_rates(HARDWARE, RATES, NOON)


STORED = {
    "device_kind": "cpu",
    "num_devices": 2,
    "measured_at": "2026-11-30T12:00:00+00:00",
    "rates": {"matmul_flops_per_s": 5e10, "kernel_launch_s": 8e-06, "link_bytes_per_s": None},
}


@many()
@given(mutations(STORED))
def test_any_file_of_rates_is_read_or_refused_in_one_line(record: object) -> None:
    path = rates_path(LAPTOP)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))
    words = refusal(with_measured_rates, LAPTOP)
    assert words is None or words.startswith(f"{path} cannot be read: ")
