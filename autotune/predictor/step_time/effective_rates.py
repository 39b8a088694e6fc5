"""The rates that a machine attains: measured ones, or typical fractions of its data sheet.

Every rate that step times are predicted from is here. Does not know what is computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from autotune.machine.hardware import DEVICE_KINDS, DeviceType, Hardware
from autotune.machine.rates import Rates
from autotune.predictor.memory.precision import has_hbm

__all__ = [
    "ATTENTION_HALF_TOKENS",
    "COLLECTIVE_S",
    "REFERENCE_LAUNCH_S",
    "EffectiveRates",
    "effective_rates",
]

REFERENCE_LAUNCH_S = 2.55e-6
"""Seconds of one small operation with autograd on the reference core, on which the times in
`launch_overhead.py` were measured."""

_MATMUL_FRACTION = 0.72
_TRAFFIC_FRACTION = 0.68
"""Fractions of the peak rates that 16-bit matrix products attain, and kernels that reduce or
convert. Measured with Llamas of 1.1 to 13 billion parameters on one H100. Confirmed on the A100
only."""

_STREAM_FRACTION = 0.90
"""Fraction of the peak bandwidth that plain copies and additions of large tensors attain.
Assumed."""

_INSTRUCTIONS_PER_S = {
    "B200": 40e12,
    "H200": 33.5e12,
    "H100-80GB": 33.5e12,
    "A100-80GB": 19.5e12,
    "A100-80GB-PCIe": 19.5e12,
    "A100-40GB": 19.5e12,
    "L40S": 45.8e12,
    "L4": 15.1e12,
    "V100-32GB": 15.7e12,
    "V100-16GB": 15.7e12,
    "RTX5090": 52.4e12,
    "RTX4090": 41.3e12,
    "RTX3090": 17.8e12,
}
"""Thread instructions per second: each multiprocessor has four schedulers, each of which issues to
32 threads a cycle. This is half of the data sheet's fp32 FLOP/s if there are as many fp32 lanes,
and all of it if there are half as many lanes, as up to the A100."""

_UNKNOWN_INSTRUCTIONS = 0.04
"""Instructions per FLOP of matrix products on a device that is not in the table: between the
A100's 0.06 and the H100's 0.03. Assumed."""

_INSTRUCTION_FRACTION = 0.54
"""Fraction of the instruction rate that kernels attain if their blocks wait for each load.
Measured on one H200 (`tests/benchmarks/optimizer_update.py`): 28.0 ps for 510 instructions, 16.3
ps for 300. Times are the same in fp32 and bf16, so bandwidth does not limit them."""

_ATTENTION_FRACTION = 0.60
_ATTENTION_FRACTION_HOPPER = 0.50
ATTENTION_HALF_TOKENS = 800
"""Fraction of the peak that flash attention attains with very long samples, and the sample length
that attains half of it. Measured with 1.1 billion parameters on one H100 at 1024 and 4096 tokens.
Other devices attain a larger fraction of their lower peaks: FlashAttention-2 attains 0.7 of an
A100's peak and 0.35 of an H100's (Dao, arXiv 2307.08691, section 4; Shah et al., arXiv 2407.08608,
section 1). For them, 0.6 is assumed."""

_KERNEL_S = 2e-6
"""Seconds of a kernel on the device beside its work: start, ramp and tail. Assumed."""

_LAUNCH_S = 8.1e-6
"""Host seconds to launch one small kernel from Python with autograd. Derived from forward and
backward of a Llama's layer at micro-batch 4, which take 4.4 ms on the host of one H100 and 1.39 ms
on the reference core."""

_MEASURED_LAUNCH_S = 14.4e-6
"""Launch time that `autotune doctor` measures on a host for which `_LAUNCH_S` holds; it includes
the driver's part, which does not grow with the size of a layer. Measured on a host of two H200, on
which trials limited by launches took as long as `_LAUNCH_S` says."""

_HOST_LINK_FRACTION = 0.8
_HOST_LINK_BYTES_PER_S = 25e9
"""Rate of pinned copies over PCIe, weight by weight as DeepSpeed does them: four fifths of the
peak, and no more than PCIe 4.0 x16 attains. Measured on one H100 with PCIe 5.0: 30 GB/s."""

_HOST_BYTES_PER_S = 100e9
"""Memory bandwidth of a server's socket, which the ranks' CPU Adam share."""

_NVME_BYTES_PER_S = 3e9
"""Rate of one drive on PCIe 4.0 x4, reading or writing, which the ranks share. Assumed."""

_LINK_FRACTION = 0.7
"""Fraction of NVLink's peak in one direction that NCCL attains in all-reduces of a gigabyte (bus
bandwidth): about 230 of 300 GB/s on an A100 and 360 of 450 on an H100 (nccl-tests, public
runs)."""

_PCIE_LINK_FRACTION = 0.5
"""Fraction of PCIe's peak for a link of a ring: two neighbours use PCIe through the host.
Assumed."""

_LOOPBACK_BYTES_PER_S = 1e9
"""Bytes per second between CPU ranks. Assumed."""

_NETWORK_BYTES_PER_S = 20e9
_NETWORK_BYTES_PER_S_PCIE = 1.5e9
"""Bytes per second of one device between hosts. Assumed: a port of 200 Gb/s for each GPU with HBM,
as in a DGX A100, and one port of 100 Gb/s for eight other GPUs."""

COLLECTIVE_S = 17e-6
"""Seconds of latency of any collective, before the first level of its tree."""

_LEVEL_S = 20e-6
"""Seconds until a collective's first byte has passed one level of a tree. Assumed. It gives 37 µs
for two ranks, as measured on two H200 over NVLink: sizes of up to 64 MiB take 37 µs more than
their bytes take at the bandwidth of a gigabyte."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EffectiveRates:
    """Rates of one device, of its host, and of their links."""

    matmul_flops_per_s: float
    attention_flops_per_s: float
    """FLOP/s of attention with very long samples; half of it at `ATTENTION_HALF_TOKENS`."""
    traffic_bytes_per_s: float
    """Bytes per second of kernels that also reduce, convert or gather."""
    stream_bytes_per_s: float
    """Bytes per second of plain copies and additions of large tensors."""
    instructions_per_s: float
    """Thread instructions per second of kernels that do more than move data."""
    kernel_s: float
    """Seconds of every kernel on the device, beside its work."""
    launch_s: float
    """Host seconds to launch one small kernel; 0 if the device is the host."""
    to_device_bytes_per_s: float
    to_host_bytes_per_s: float
    host_bytes_per_s: float
    """Bytes per second of the host's memory, all ranks together."""
    nvme_bytes_per_s: float
    """Bytes per second of NVMe, all ranks together."""
    link_bytes_per_s: float
    """Bytes per second of each link of a ring within a host."""
    network_bytes_per_s: float
    """Bytes per second of each device between hosts."""
    level_s: float
    """Seconds until a collective's first byte has passed one level of a tree of ranks."""


def effective_rates(hardware: Hardware) -> EffectiveRates:
    """The rates of a machine: measured ones if there are any, else typical ones."""
    is_cpu = hardware.device_type is DeviceType.CPU
    rates = hardware.rates or Rates()
    matmul = rates.matmul_flops_per_s or hardware.flops_per_s * _MATMUL_FRACTION
    stream = rates.memory_bytes_per_s or hardware.memory_bytes_per_s * _STREAM_FRACTION
    is_hopper = has_hbm(hardware) and hardware.supports_fp8
    flash = _ATTENTION_FRACTION_HOPPER if is_hopper else _ATTENTION_FRACTION
    usual_link, pcie = _links(hardware)
    return EffectiveRates(
        matmul_flops_per_s=matmul,
        attention_flops_per_s=matmul * flash / _MATMUL_FRACTION,
        traffic_bytes_per_s=stream * _TRAFFIC_FRACTION / _STREAM_FRACTION,
        stream_bytes_per_s=stream,
        instructions_per_s=_instructions_per_s(hardware),
        kernel_s=0.0 if is_cpu else _KERNEL_S,
        launch_s=0.0 if is_cpu else _launch_s(rates),
        to_device_bytes_per_s=rates.host_to_device_bytes_per_s or pcie,
        to_host_bytes_per_s=rates.device_to_host_bytes_per_s or pcie,
        host_bytes_per_s=rates.host_memory_bytes_per_s or _HOST_BYTES_PER_S,
        nvme_bytes_per_s=rates.nvme_bytes_per_s or _NVME_BYTES_PER_S,
        link_bytes_per_s=rates.link_bytes_per_s or usual_link,
        network_bytes_per_s=(
            _NETWORK_BYTES_PER_S if has_hbm(hardware) else _NETWORK_BYTES_PER_S_PCIE
        ),
        level_s=_level_s(hardware),
    )


def _instructions_per_s(hardware: Hardware) -> float:
    if hardware.device_type is DeviceType.CPU:
        return math.inf
    unknown = hardware.flops_per_s * _UNKNOWN_INSTRUCTIONS
    return _INSTRUCTION_FRACTION * _INSTRUCTIONS_PER_S.get(hardware.device_kind, unknown)


def _launch_s(rates: Rates) -> float:
    measured = rates.kernel_launch_s
    return _LAUNCH_S * measured / _MEASURED_LAUNCH_S if measured else _LAUNCH_S


def _level_s(hardware: Hardware) -> float:
    measured = hardware.rates.collective_s if hardware.rates else None
    if not measured:
        return _LEVEL_S
    num_levels = max(1.0, math.log2(hardware.devices_per_node))
    return max(0.0, measured - COLLECTIVE_S) / num_levels


def _links(hardware: Hardware) -> tuple[float, float]:
    """Bytes per second between two devices of a host, and between a device and the host."""
    kind = DEVICE_KINDS.get(hardware.device_kind)
    pcie = kind.pcie_bytes_per_s if kind else _UNKNOWN_PCIE
    nvlink = kind.nvlink_bytes_per_s if kind else _UNKNOWN_NVLINK * has_hbm(hardware)
    copies = min(pcie * _HOST_LINK_FRACTION, _HOST_LINK_BYTES_PER_S)
    if hardware.device_type is DeviceType.CPU:
        return _LOOPBACK_BYTES_PER_S, copies
    return nvlink * _LINK_FRACTION or pcie * _PCIE_LINK_FRACTION, copies


_UNKNOWN_PCIE = 31.5e9
_UNKNOWN_NVLINK = 300e9
"""Link rates of a device that is not in the table: PCIe 4.0 x16, and the A100's NVLink if the
device has HBM."""
