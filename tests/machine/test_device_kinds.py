"""A driver's name stands for one kind whole, and never for another card."""

from __future__ import annotations

import pytest

from autotune.machine.device_kinds import DEVICE_KINDS, kind_of


@pytest.mark.parametrize(
    ("nvml_name", "kind"),
    [
        ("NVIDIA B200", "B200"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100-80GB"),
        ("NVIDIA H100 PCIe", "H100-80GB-PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB-PCIe"),
        ("NVIDIA A100-PCIE-40GB", "A100-40GB-PCIe"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("Tesla V100-SXM2-32GB", "V100-32GB"),
        ("Tesla V100-PCIE-16GB", "V100-16GB-PCIe"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("NVIDIA GeForce RTX 3090", "RTX3090"),
    ],
)
def test_a_driver_s_name_stands_for_its_kind(nvml_name: str, kind: str) -> None:
    assert kind_of(nvml_name) is DEVICE_KINDS[kind]


@pytest.mark.parametrize(
    "nvml_name",
    [
        *(
            "NVIDIA GH200 480GB",
            "NVIDIA GH200 120GB",
            "NVIDIA GB200",
            "NVIDIA H20",
            "NVIDIA H200 NVL",
        ),
        *("NVIDIA H100 NVL", "NVIDIA H800", "NVIDIA A800-SXM4-80GB", "NVIDIA A800 80GB PCIe"),
        *("NVIDIA A100X", "GRID A100D-80C", "NVIDIA A100-SXM-64GB", "NVIDIA L40", "NVIDIA L40G"),
        *(
            "NVIDIA A10",
            "NVIDIA A10G",
            "NVIDIA A40",
            "NVIDIA RTX A6000",
            "Tesla T4",
            "Tesla V100S",
        ),
        *("NVIDIA RTX 6000 Ada Generation", "NVIDIA GeForce RTX 4090 Laptop GPU"),
        *("NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 3090 Ti", "NVIDIA GeForce RTX 5090 D"),
        *(
            "Tesla V100S-PCIE-32GB",
            "NVIDIA A100-SXM4-80GB MIG 1g.10gb",
            "NVIDIA L40S-48Q",
            "",
            "L",
        ),
    ],
)
def test_another_card_is_not_taken_for_a_known_one(nvml_name: str) -> None:
    assert kind_of(nvml_name) is None


def test_every_kind_is_recognised_by_its_driver_s_names() -> None:
    for kind in DEVICE_KINDS.values():
        for name in kind.nvml_names:
            assert kind_of(f"NVIDIA {name}") is kind
