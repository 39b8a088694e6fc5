"""A name is answered for whole: no other product is, nor offered in its place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import many

from autotune.machine.device_kinds import DEVICE_KINDS, DeviceKind
from autotune.machine.device_names import named_kind
from autotune.machine.unsupported_devices import UNSUPPORTED_DEVICES, UnsupportedDevice


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("H100", "H100-80GB"),
        ("H200", "H200"),
        ("h100-pcie", "H100-80GB-PCIe"),
        ("a100 80gb pcie", "A100-80GB-PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("GeForce RTX 4090", "RTX4090"),
        ("l40s", "L40S"),
    ],
)
def test_a_name_stands_for_the_kind_that_it_names(name: str, kind: str) -> None:
    assert named_kind(name) is DEVICE_KINDS[kind]


def test_a_name_of_several_sizes_of_memory_is_asked_about() -> None:
    assert "may be any of V100-32GB, V100-32GB-PCIe, V100-16GB" in str(named_kind("V100"))
    assert "may be any of A100-80GB-PCIe, A100-40GB-PCIe" in str(named_kind("A100-PCIe"))


@pytest.mark.parametrize("name", ["H", "H1", "H10", "H2", "B2", "B20", "L", "L40X", "RTX", "RTX4"])
def test_the_beginning_of_a_name_is_none(name: str) -> None:
    words = named_kind(name)
    assert isinstance(words, str)
    assert "did you mean" not in words


@pytest.mark.parametrize("name", UNSUPPORTED_DEVICES)
def test_what_people_own_is_known_and_answered_by_its_own_name(name: str) -> None:
    assert named_kind(name) is UNSUPPORTED_DEVICES[name]
    assert name not in DEVICE_KINDS


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("A800", "A800"),
        ("NVIDIA A800 80GB PCIe", "A800"),
        ("A800-SXM4-80GB", "A800"),
        ("H20", "H20"),
        ("H20-96GB", "H20"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("Tesla T4", "T4"),
        ("RTX A6000", "A6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX6000Ada"),
        ("rtx 6000 ada", "RTX6000Ada"),
        ("AMD Instinct MI300X", "MI300X"),
        ("MI300X-192GB", "MI300X"),
        ("NVIDIA H100 NVL", "H100NVL"),
        ("GeForce RTX 4080 SUPER", "RTX4080SUPER"),
        ("RTX 4090 D", "RTX4090D"),
    ],
)
def test_maker_socket_and_memory_do_not_hide_what_is_meant(name: str, known: str) -> None:
    assert named_kind(name) is UNSUPPORTED_DEVICES[known]


def test_a_laptop_s_gpu_is_no_card() -> None:
    found = named_kind("GeForce RTX 4090 Laptop GPU")
    assert isinstance(found, UnsupportedDevice)
    assert "laptop" in found.reason


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("H1000", "H100-80GB"),
        ("RTX4900", "RTX4090"),
        ("RXT 4090", "RTX4090"),
        ("A100-80G", "A100-80GB"),
    ],
)
def test_a_slip_of_the_hand_is_mended(name: str, hint: str) -> None:
    assert f"did you mean {hint}? Known are B200" in str(named_kind(name))


@pytest.mark.parametrize("name", ["A900", "H300", "RTX4091", "B400", "X100", "L41", "V200"])
def test_another_number_or_letter_is_another_product(name: str) -> None:
    words = named_kind(name)
    assert isinstance(words, str)
    assert "did you mean" not in words


@many(300)
@given(st.text("ABGHLRTVX 0123489-gb", max_size=12))
def test_only_a_whole_name_is_a_kind(name: str) -> None:
    found = named_kind(name)
    if isinstance(found, DeviceKind):
        plain = name.upper().replace(" ", "").replace("-", "")
        assert found.name.upper().replace("-", "").startswith(plain)
        assert set("0123456789") & set(plain)
