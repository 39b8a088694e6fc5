"""The kinds of GPU whose data sheets autotune has, and the names that drivers report for them.

A name stands for the kind that it names whole, and for no other: an H20 is no H200, an L40 no L4,
a laptop's RTX 4090 no RTX 4090. Does not know which GPUs are here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["ADA", "AMPERE", "DEVICE_KINDS", "GB", "GIB", "DeviceKind", "kind_of"]

GB = 10**9
GIB = 2**30

# CUDA C++ Programming Guide, "Compute Capabilities": the first with bf16 and TF32, and with fp8.
# Triton, Liger and FlashAttention 2 have kernels from the first of the two on.
AMPERE = (8, 0)
ADA = (8, 9)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceKind:
    """One line of a data sheet. Rates are dense peaks, without sparsity."""

    name: str
    """The name that `Hardware.device_kind` carries."""
    nvml_names: tuple[str, ...]
    """The names that NVML reports, without the maker's and the brand's."""
    memory_bytes: int
    """Memory of one device, as NVML reports it, to the GiB."""
    flops_per_s: float
    """Peak of bf16 (or fp16 where the device has no bf16) matrix products, fp32 accumulate."""
    memory_bytes_per_s: float
    """Peak bandwidth of the device memory."""
    compute_capability: tuple[int, int]
    """CUDA's number for what the device can do."""
    nvlink_bytes_per_s: float
    """Peak of all its NVLinks together, in one direction; 0 where there are none."""
    pcie_bytes_per_s: float
    """Peak of its PCIe connection, in one direction."""

    @property
    def supports_bf16(self) -> bool:
        """Whether matrix products in bf16 run at full rate."""
        return self.compute_capability >= AMPERE

    @property
    def supports_tf32(self) -> bool:
        """Whether fp32 matrix products can use TensorFloat-32."""
        return self.compute_capability >= AMPERE

    @property
    def supports_fp8(self) -> bool:
        """Whether it has matrix products in 8-bit floating point."""
        return self.compute_capability >= ADA


def _kind(
    name: str,
    nvml_names: str | tuple[str, ...],
    gib: int,
    tflops: float,
    gb_per_s: float,
    capability: tuple[int, int],
    *,
    nvlink_gb: float = 0.0,
    pcie: int = 4,
) -> DeviceKind:
    return DeviceKind(
        name=name,
        nvml_names=(nvml_names,) if isinstance(nvml_names, str) else nvml_names,
        memory_bytes=gib * GIB,
        flops_per_s=tflops * 1e12,
        memory_bytes_per_s=gb_per_s * GB,
        compute_capability=capability,
        nvlink_bytes_per_s=nvlink_gb * GB,
        pcie_bytes_per_s=_PCIE_GB_PER_S[pcie] * GB,
    )


_PCIE_GB_PER_S = {3: 15.75, 4: 31.5, 5: 63.0}
"""Sixteen lanes of each generation."""

_A100_80GB = ("A100-SXM4-80GB", "A100-SXM-80GB")
_A100_40GB = ("A100-SXM4-40GB", "A100-SXM-40GB")
_V100_32GB = ("V100-SXM2-32GB", "V100-SXM3-32GB")

DEVICE_KINDS: dict[str, DeviceKind] = {
    kind.name: kind
    for kind in (
        # Vendor data sheets, dense rates. NVLink bridges, which PCIe cards may have in pairs, are
        # not counted.
        _kind("B200", "B200", 180, 2250, 8000, (10, 0), nvlink_gb=900, pcie=5),
        _kind("H200", "H200", 140, 989, 4800, (9, 0), nvlink_gb=450, pcie=5),
        _kind("H100-80GB", "H100 80GB HBM3", 80, 989, 3350, (9, 0), nvlink_gb=450, pcie=5),
        _kind("H100-80GB-PCIe", "H100 PCIe", 80, 756, 2000, (9, 0), pcie=5),
        _kind("A100-80GB", _A100_80GB, 80, 312, 2039, (8, 0), nvlink_gb=300),
        _kind("A100-80GB-PCIe", "A100 80GB PCIe", 80, 312, 1935, (8, 0)),
        _kind("A100-40GB", _A100_40GB, 40, 312, 1555, (8, 0), nvlink_gb=300),
        _kind("A100-40GB-PCIe", "A100-PCIE-40GB", 40, 312, 1555, (8, 0)),
        _kind("L40S", "L40S", 45, 362, 864, (8, 9)),
        _kind("L4", "L4", 22, 121, 300, (8, 9)),
        _kind("V100-32GB", _V100_32GB, 32, 125, 900, (7, 0), nvlink_gb=150, pcie=3),
        _kind("V100-32GB-PCIe", "V100-PCIE-32GB", 32, 112, 900, (7, 0), pcie=3),
        _kind("V100-16GB", "V100-SXM2-16GB", 16, 125, 900, (7, 0), nvlink_gb=150, pcie=3),
        _kind("V100-16GB-PCIe", "V100-PCIE-16GB", 16, 112, 900, (7, 0), pcie=3),
        _kind("RTX5090", "RTX 5090", 32, 210, 1792, (12, 0), pcie=5),
        _kind("RTX4090", "RTX 4090", 24, 165, 1008, (8, 9)),
        _kind("RTX3090", "RTX 3090", 24, 71, 936, (8, 6)),
    )
}

_BRANDS = re.compile(r"(?:nvidia )?(?:tesla |geforce )?")


def kind_of(nvml_name: str) -> DeviceKind | None:
    """The kind that a driver's name stands for, whole; None where the table does not have it."""
    name = " ".join(nvml_name.lower().split())
    name = name[_BRANDS.match(name).end() :]  # type: ignore[union-attr]
    return _BY_NVML_NAME.get(name)


_BY_NVML_NAME = {name.lower(): kind for kind in DEVICE_KINDS.values() for name in kind.nvml_names}
