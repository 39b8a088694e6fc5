"""Devices that autotune knows and does not support, each with the reason.

So that an A800 is answered by its name, and not by that of an A100. Does not know the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["UNSUPPORTED_DEVICES", "UnsupportedDevice", "unsupported_device"]


@dataclass(frozen=True, kw_only=True, slots=True)
class UnsupportedDevice:
    """A device that is known by name alone."""

    name: str
    reason: str
    """Why it is not answered for, after its name."""
    compute_capability: tuple[int, int] | None = None
    """CUDA's number for what it can do, where the name tells."""
    is_nvidia: bool = True
    """Whether a file may describe it: all else of autotune is about CUDA and CPUs."""


_NO_RATES = "its rates are not in the table"
_ROCM = "it is AMD's, and autotune supports only NVIDIA GPUs and CPUs"
_OTHER = "it is not an NVIDIA GPU, and autotune supports only those and CPUs"
_LAPTOP = "it is a laptop's, with less memory and power than the card of that number"

_NVIDIA: tuple[tuple[tuple[int, int], str, dict[str, str]], ...] = (
    # Compute capability (CUDA GPUs, developer.nvidia.com), names, and reasons of their own.
    (
        (12, 0),
        "RTX5080 RTX5070Ti RTX5070 RTX5060Ti RTX5060 RTX5050 RTXPRO6000 RTXPRO6000Blackwell "
        "RTXPRO5000 RTXPRO4500 RTXPRO4000",
        {"RTX5090D": "it computes less than an RTX 5090, which it is named after"},
    ),
    ((12, 1), "GB10", {}),
    ((10, 3), "B300 GB300", {}),
    (
        (10, 0),
        "B100",
        {"GB200": "its GPUs reach the host's memory by NVLink, which is not modelled"},
    ),
    (
        (9, 0),
        "H203e H100NVL H200NVL H100L",
        {
            "H800": "it is an H100 with less NVLink, and its rates are not in the table",
            "H20": "it computes a seventh of an H100, and its rates are not in the table",
            "GH200": "its GPU reaches the host's memory by NVLink, which is not modelled",
        },
    ),
    (
        (8, 9),
        "L40 L40G L20 L2 RTX6000Ada RTX5880Ada RTX5000Ada RTX4500Ada RTX4000Ada RTX4000SFFAda "
        "RTX2000Ada RTX4080SUPER RTX4080 RTX4070TiSUPER RTX4070Ti RTX4070SUPER RTX4070 RTX4060Ti "
        "RTX4060 RTX4050",
        {"RTX4090D": "it computes less than an RTX 4090, which it is named after"},
    ),
    ((8, 7), "Orin AGXOrin", {}),
    (
        (8, 6),
        "A40 A16 A10 A10G A10M A2 A6000 A5500 A5000 A4500 A4000 A2000 A1000 RTX3090Ti RTX3080Ti "
        "RTX3080 RTX3070Ti RTX3070 RTX3060Ti RTX3060 RTX3050",
        {},
    ),
    (
        (8, 0),
        "A30 A30X A100X CMP170HX",
        {"A800": "it is an A100 with less NVLink, and its rates are not in the table"},
    ),
    (
        (7, 5),
        "T4 T4G T1000 RTX8000 RTX5000 RTX4000 RTX2080Ti RTX2080SUPER RTX2080 RTX2070SUPER RTX2070 "
        "RTX2060 TITANRTX GTX1660",
        {"RTX6000": "two GPUs have that name, of Turing and of Ada, and the table has neither"},
    ),
    ((7, 0), "V100S TITANV", {}),
    ((6, 1), "P40 P4 GTX1080Ti GTX1080 GTX1070 TITANXp", {}),
    ((6, 0), "P100", {}),
    ((5, 2), "M60 M40", {}),
    ((3, 7), "K80", {}),
)

_OTHERS = {
    "MI355X MI350X MI325X MI300X MI300A MI250X MI250 MI210 MI100 MI60 MI50 RX7900XTX W7900": _ROCM,
    "Gaudi Gaudi2 Gaudi3 HPU Max1550 Max1100 PVC ArcA770 ArcB580 B580": _OTHER,
    "TPU TPUv2 TPUv3 TPUv4 TPUv5e TPUv5p TPUv6e Trainium Trainium2 Trn1 Trn2 Inferentia2": _OTHER,
    "Ascend910 Ascend910B Ascend910C 910B M1 M2 M3 M4 M1Max M2Ultra M3Max M3Ultra M4Max": _OTHER,
}


def _devices() -> Iterator[UnsupportedDevice]:
    for capability, names, own in _NVIDIA:
        for name, reason in (dict.fromkeys(names.split(), _NO_RATES) | own).items():
            yield UnsupportedDevice(name=name, reason=reason, compute_capability=capability)
    for names, reason in _OTHERS.items():
        for name in names.split():
            yield UnsupportedDevice(name=name, reason=reason, is_nvidia=False)


UNSUPPORTED_DEVICES: dict[str, UnsupportedDevice] = {each.name: each for each in _devices()}
"""By name."""

_BY_FAMILY = {each.name.lower(): each for each in UNSUPPORTED_DEVICES.values()}

_WORD = re.compile(r"[a-z0-9]+")
_DECORATION = re.compile(
    r"nvidia|amd|intel|google|aws|huawei|apple|tesla|geforce|quadro|instinct|radeon|jetson|grid"
    r"|sxm\d?|pcie|oam|hbm\d?e?|\d+gb?|gpu|generation|active|workstation|server|edition"
)
"""Words that name no product: the maker, the brand, the socket, the memory."""


def unsupported_device(name: str) -> UnsupportedDevice | None:
    """The device of this table that a name stands for, with or without its maker and memory."""
    words = _WORD.findall(name.lower())
    whole = "".join(words)
    family = "".join(word for word in words if not _DECORATION.fullmatch(word))
    if family.endswith("laptop") and words:
        return UnsupportedDevice(name=name, reason=_LAPTOP)
    for candidate in (whole, family):
        found = _BY_FAMILY.get(candidate) or _BY_FAMILY.get(candidate.removeprefix("rtx"))
        if found is not None:
            return found
    return None
