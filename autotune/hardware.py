"""What training runs on: the kind of device, how many, their memory and rates.

Does not know the model. Detection asks NVML and the operating system, so no CUDA context is made
and torch is not imported.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

__all__ = [
    "DEVICE_KINDS",
    "DeviceKind",
    "DeviceType",
    "Hardware",
    "detect_hardware",
    "host_memory_bytes",
]

GB = 10**9
GIB = 2**30


class DeviceType(StrEnum):
    """The backend that holds the tensors: torch's own name for it."""

    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceKind:
    """One line of a data sheet. Rates are dense peaks, without sparsity."""

    name: str
    """The name that `Hardware.device_kind` carries."""
    nvml_name: str
    """A part of the name that NVML reports, by which the device is recognised."""
    memory_bytes: int
    """Memory of one device, as NVML reports it, to the GiB."""
    flops_per_s: float
    """Peak of bf16 (or fp16 where the device has no bf16) matrix products, fp32 accumulate."""
    memory_bytes_per_s: float
    """Peak bandwidth of the device memory."""
    supports_bf16: bool = True
    """Whether matrix products in bf16 run at full rate."""


def _kind(
    name: str, nvml_name: str, gib: int, tflops: float, gb_per_s: float, bf16: bool = True
) -> DeviceKind:
    return DeviceKind(
        name=name,
        nvml_name=nvml_name,
        memory_bytes=gib * GIB,
        flops_per_s=tflops * 1e12,
        memory_bytes_per_s=gb_per_s * GB,
        supports_bf16=bf16,
    )


DEVICE_KINDS: dict[str, DeviceKind] = {
    kind.name: kind
    for kind in (
        # Vendor data sheets, dense rates. The first match of `nvml_name` wins.
        _kind("B200", "B200", 180, 2250, 8000),
        _kind("H200", "H200", 140, 989, 4800),
        _kind("H100-80GB", "H100", 80, 989, 3350),
        _kind("A100-80GB", "A100-SXM4-80GB", 80, 312, 2039),
        _kind("A100-80GB-PCIe", "A100 80GB", 80, 312, 1935),
        _kind("A100-40GB", "A100", 40, 312, 1555),
        _kind("L40S", "L40S", 45, 362, 864),
        _kind("L4", "L4", 22, 121, 300),
        _kind("V100-32GB", "V100-SXM2-32GB", 32, 125, 900, bf16=False),
        _kind("V100-16GB", "V100", 16, 125, 900, bf16=False),
        _kind("RTX5090", "RTX 5090", 32, 210, 1792),
        _kind("RTX4090", "RTX 4090", 24, 165, 1008),
        _kind("RTX3090", "RTX 3090", 24, 71, 936),
    )
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """The devices of one host that a trial may use."""

    device_type: DeviceType
    """Where tensors live."""
    device_kind: str
    """A name of `DEVICE_KINDS`, NVML's name of an unknown GPU, or `cpu`."""
    num_devices: int
    """Ranks of a trial: one for each device."""
    device_memory_bytes: int
    """Memory one rank may use: the GPU's, or on the CPU its share of the host's."""
    host_memory_bytes: int
    """Memory of the host, or of the container that limits it."""
    flops_per_s: float
    """Peak rate of one device's matrix products at 16 bit."""
    memory_bytes_per_s: float
    """Peak bandwidth of one device's memory."""
    supports_bf16: bool = True
    """Whether bf16 is worth proposing."""
    supports_fp16: bool = True
    """Whether fp16 can be computed with at all."""

    def __str__(self) -> str:
        """The way a person names it: `1 x H100-80GB`, `2 x cpu`."""
        return f"{self.num_devices} x {self.device_kind}"


def host_memory_bytes() -> int:
    """Memory of the host, or of the control group that limits this process."""
    import psutil

    total = int(psutil.virtual_memory().total)
    limit_file = Path("/sys/fs/cgroup/memory.max")
    try:
        text = limit_file.read_text().strip()
    except OSError:
        return total
    return min(total, int(text)) if text.isdigit() else total


def _cpu_computes_fp16() -> bool:
    """Whether DeepSpeed takes fp16 on this CPU, which oneDNN decides by the instruction set.

    Where /proc/cpuinfo names no AVX512-FP16, as on other architectures, it is taken for missing.
    """
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return "avx512_fp16" in flags.split()


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One GPU as NVML sees it."""

    name: str
    memory_bytes: int
    used_bytes: int
    """In use now, by anybody."""


def visible_gpus() -> list[Gpu]:
    """The GPUs that CUDA would use, in its order; empty where there is no driver.

    `CUDA_VISIBLE_DEVICES` may name them by index or by UUID; as for CUDA, the first name that
    stands for none ends the list.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = [
            pynvml.nvmlDeviceGetHandleByIndex(index)
            for index in range(pynvml.nvmlDeviceGetCount())
        ]
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            names = {str(index): handle for index, handle in enumerate(handles)}
            names |= {str(pynvml.nvmlDeviceGetUUID(handle)): handle for handle in handles}
            handles = [names.get(part.strip()) for part in visible.split(",")]
            handles = handles[: handles.index(None)] if None in handles else handles
        memories = [pynvml.nvmlDeviceGetMemoryInfo(handle) for handle in handles]
        return [
            Gpu(
                name=str(pynvml.nvmlDeviceGetName(handle)),
                memory_bytes=int(memory.total),
                used_bytes=int(memory.used),
            )
            for handle, memory in zip(handles, memories, strict=True)
        ]
    finally:
        pynvml.nvmlShutdown()


def _kind_of(nvml_name: str) -> DeviceKind | None:
    return next((kind for kind in DEVICE_KINDS.values() if kind.nvml_name in nvml_name), None)


def detect_hardware(num_devices: int | None = None) -> Hardware:
    """What this machine has: all its GPUs, or else the CPU with two ranks.

    Args:
        num_devices: use only so many of them (GPUs), or so many ranks (CPU).

    Raises:
        ConfigError: more GPUs asked for than there are, or fewer than one.
    """
    from autotune.errors import ConfigError

    if num_devices is not None and num_devices < 1:
        raise ConfigError(f"--devices must be at least 1, got {num_devices}")
    host = host_memory_bytes()
    gpus = [] if os.environ.get("DS_ACCELERATOR") == "cpu" else visible_gpus()
    if not gpus:
        ranks = num_devices or 2
        return Hardware(
            device_type=DeviceType.CPU,
            device_kind="cpu",
            num_devices=ranks,
            device_memory_bytes=host // ranks,
            host_memory_bytes=host,
            # Order-of-magnitude rates of a laptop core.
            flops_per_s=5e10 * max(1, (os.cpu_count() or 1) // ranks),
            memory_bytes_per_s=1e10,
            supports_fp16=_cpu_computes_fp16(),
        )
    if num_devices is not None and num_devices > len(gpus):
        raise ConfigError(
            f"--devices {num_devices} asked for, but this machine has {len(gpus)} GPU(s)"
        )
    used = gpus[: num_devices or len(gpus)]
    name = used[0].name
    kind = _kind_of(name)
    return Hardware(
        device_type=DeviceType.CUDA,
        device_kind=kind.name if kind else name,
        num_devices=len(used),
        device_memory_bytes=min(gpu.memory_bytes for gpu in used),
        host_memory_bytes=host,
        flops_per_s=kind.flops_per_s if kind else 1e14,
        memory_bytes_per_s=kind.memory_bytes_per_s if kind else 1e12,
        supports_bf16=kind.supports_bf16 if kind else True,
    )
