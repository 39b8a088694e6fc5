"""The hardware that training runs on: kind of device, number, memory, rates.

Does not know the model. Detection asks NVML and the operating system, so no CUDA context is made
and torch is not imported.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from autotune.machine.cpu_precisions import cpu_precisions
from autotune.machine.device_kinds import (
    ADA,
    AMPERE,
    DEVICE_KINDS,
    GB,
    GIB,
    DeviceKind,
    kind_of,
)
from autotune.machine.rates import Rates
from autotune.names import plain_name, printable

__all__ = [
    "DEVICE_KINDS",
    "FULL_DISK_BYTES",
    "GB",
    "GIB",
    "DeviceKind",
    "DeviceType",
    "Hardware",
    "detect_hardware",
    "host_memory_bytes",
    "with_nvme",
]

FULL_DISK_BYTES = 64 * 2**20
"""With less than this left, a disk is taken to be full.

DeepSpeed's asynchronous I/O tells no errors: a write that found no room is noticed when the file
is read back too short.
"""


class DeviceType(StrEnum):
    """The backend that holds the tensors: torch's own name for it."""

    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """The devices that a trial may use: of one host, or in a plan of several that are alike."""

    device_type: DeviceType
    """Where tensors live."""
    device_kind: str
    """A name of `DEVICE_KINDS`, NVML's name of an unknown GPU, or `cpu`."""
    num_devices: int
    """Ranks of a trial, on all hosts together: one for each device."""
    device_memory_bytes: int
    """Memory one rank may use: the GPU's, or on the CPU its share of the host's."""
    host_memory_bytes: int
    """Memory of one host, or of the container that limits it."""
    flops_per_s: float
    """Peak rate of one device's matrix products at 16 bit; of a CPU without bf16 in fp32."""
    memory_bytes_per_s: float
    """Peak bandwidth of one device's memory."""
    supports_bf16: bool = True
    """Whether bf16 is worth proposing: without instructions for it a CPU computes it slowly."""
    supports_fp16: bool = True
    """Whether DeepSpeed takes fp16."""
    supports_tf32: bool = False
    """Whether fp32 matrix products can use TensorFloat-32."""
    supports_fp8: bool = False
    """Whether there are matrix products in 8-bit floating point."""
    compute_capability: tuple[int, int] | None = None
    """CUDA's number for what the GPU can do; None of a CPU and where nobody kept it."""
    nvme_path: str | None = None
    """Folder for what is offloaded to NVMe, if one was named."""
    nvme_free_bytes: int = 0
    """Room on its disk, of each host, when the search began."""
    num_nodes: int = 1
    """Hosts that the devices are spread over evenly."""
    rates: Rates | None = None
    """What this very machine was measured to attain, if it was."""

    def __post_init__(self) -> None:
        """Refuse names that must not be written where they go: files, drivers, labels give them.

        Raises:
            ConfigError: such a name.
        """
        plain_name(self.device_kind, "the device kind")
        if self.nvme_path is not None:
            printable(self.nvme_path, "the NVMe path")

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Hardware:
        """Read back what `dataclasses.asdict` gave, through JSON or not."""
        capability, rates = record["compute_capability"], record["rates"]
        return cls(
            **{
                **record,
                "device_type": DeviceType(record["device_type"]),
                "rates": Rates(**rates) if rates else None,
                "compute_capability": None if capability is None else tuple(capability),
            }
        )

    @property
    def runs_triton(self) -> bool:
        """Whether it is a GPU that Triton, Liger and FlashAttention 2 have kernels for."""
        if self.device_type is not DeviceType.CUDA:
            return False
        if self.compute_capability is None:
            return self.supports_bf16
        return self.compute_capability >= AMPERE

    @property
    def devices_per_node(self) -> int:
        """Ranks that share a host, its memory and its disk."""
        return self.num_devices // self.num_nodes

    @property
    def host(self) -> Hardware:
        """One of the hosts alone."""
        return replace(self, num_devices=self.devices_per_node, num_nodes=1)

    def __str__(self) -> str:
        """The way a person names it: `1 x H100-80GB`, `2 x cpu`, `2 nodes of 8 x H100-80GB`."""
        of_one = f"{self.devices_per_node} x {self.device_kind}"
        return of_one if self.num_nodes == 1 else f"{self.num_nodes} nodes of {of_one}"


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One GPU as NVML sees it."""

    name: str
    memory_bytes: int
    used_bytes: int
    """In use now, by anybody."""
    compute_capability: tuple[int, int]
    utilisation: float = 0.0
    """Share of the last moment in which anybody's kernels ran on it."""


def visible_handles(nvml: Any) -> list[Any]:
    """NVML's handles of the GPUs that CUDA would use, in its order.

    `CUDA_VISIBLE_DEVICES` may name them by index or by UUID; as for CUDA, the first name that
    stands for none ends the list.

    Args:
        nvml: the module `pynvml`, after its `nvmlInit`.
    """
    handles = [nvml.nvmlDeviceGetHandleByIndex(n) for n in range(nvml.nvmlDeviceGetCount())]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return handles
    names = {str(index): handle for index, handle in enumerate(handles)}
    names |= {str(nvml.nvmlDeviceGetUUID(handle)): handle for handle in handles}
    named = [names.get(part.strip()) for part in visible.split(",")]
    return named[: named.index(None)] if None in named else named


def visible_gpus() -> list[Gpu]:
    """The GPUs that CUDA would use, in its order; empty where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = visible_handles(pynvml)
        memories = [pynvml.nvmlDeviceGetMemoryInfo(handle) for handle in handles]
        return [
            Gpu(
                name=str(pynvml.nvmlDeviceGetName(handle)),
                memory_bytes=int(memory.total),
                used_bytes=int(memory.used),
                compute_capability=_capability(handle),
                utilisation=_utilisation(handle),
            )
            for handle, memory in zip(handles, memories, strict=True)
        ]
    finally:
        pynvml.nvmlShutdown()


def _capability(handle: Any) -> tuple[int, int]:
    import pynvml

    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    return int(major), int(minor)


def _utilisation(handle: Any) -> float:
    """0 where the driver does not count it, as of a part of a GPU (MIG)."""
    import pynvml

    try:
        return float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
    except pynvml.NVMLError:
        return 0.0


_MOST_RANKS_PER_CORE = 4
"""CPU ranks show that a strategy runs; more of them take the memory and wait for each other."""


def detect_hardware(num_devices: int | None = None) -> Hardware:
    """What this machine has: all its GPUs, or else the CPU with two ranks.

    Args:
        num_devices: use only so many of them (GPUs), or so many ranks (CPU).

    Raises:
        ConfigError: more GPUs asked for than there are, more ranks than the cores carry, or fewer
            than one.
    """
    from autotune.errors import ConfigError

    if num_devices is not None and num_devices < 1:
        raise ConfigError(f"--devices must be at least 1, got {num_devices}")
    host = host_memory_bytes()
    gpus = [] if os.environ.get("DS_ACCELERATOR") == "cpu" else visible_gpus()
    if not gpus:
        most = max(2, _MOST_RANKS_PER_CORE * (os.cpu_count() or 1))
        if num_devices is not None and num_devices > most:
            raise ConfigError(
                f"--devices {num_devices}: this machine has no GPU, and its cores can run at "
                f"most {most} CPU ranks"
            )
        ranks, precisions = num_devices or 2, cpu_precisions()
        return Hardware(
            device_type=DeviceType.CPU,
            device_kind="cpu",
            num_devices=ranks,
            device_memory_bytes=host // ranks,
            host_memory_bytes=host,
            # Order-of-magnitude rates of a laptop core.
            flops_per_s=5e10 * max(1, (os.cpu_count() or 1) // ranks),
            memory_bytes_per_s=1e10,
            supports_bf16=precisions.bf16,
            supports_fp16=precisions.fp16,
        )
    if num_devices is not None and num_devices > len(gpus):
        raise ConfigError(
            f"--devices {num_devices}: this machine has {len(gpus)} GPU(s); choose at most that"
        )
    used = gpus[: num_devices or len(gpus)]
    name, capability = used[0].name, min(gpu.compute_capability for gpu in used)
    kind = kind_of(name)
    return Hardware(
        device_type=DeviceType.CUDA,
        device_kind=kind.name if kind else name,
        num_devices=len(used),
        device_memory_bytes=min(gpu.memory_bytes for gpu in used),
        host_memory_bytes=host,
        flops_per_s=kind.flops_per_s if kind else 1e14,
        memory_bytes_per_s=kind.memory_bytes_per_s if kind else 1e12,
        supports_bf16=capability >= AMPERE,
        supports_tf32=capability >= AMPERE,
        supports_fp8=capability >= ADA,
        compute_capability=capability,
    )


def shared_out(hardware: Hardware, num_devices: int) -> tuple[Hardware, int]:
    """The devices of one trial where several run side by side, and how many of them do.

    Memory and cores of the host stay whole: what works there runs alone.

    Raises:
        ConfigError: the devices cannot be shared out so.
    """
    from autotune.errors import ConfigError

    if num_devices < 1 or hardware.num_devices % num_devices:
        raise ConfigError(
            f"--devices-per-trial {num_devices} does not divide {hardware.num_devices} devices; "
            "choose a divisor, or another --devices"
        )
    return replace(hardware, num_devices=num_devices), hardware.num_devices // num_devices


def with_nvme(hardware: Hardware, path: Path) -> Hardware:
    """The machine with a folder for offloading to NVMe.

    Writes one page there and removes it, since permissions, a read-only mount and a file system
    without O_DIRECT (which DeepSpeed's asynchronous I/O opens files with) show in no other way.

    Raises:
        ConfigError: there is no such folder, or DeepSpeed could not write to it.
    """
    from autotune.errors import ConfigError

    if not path.is_dir():
        what = "this is a file" if path.exists() else "no such folder"
        raise ConfigError(f"--nvme-path {path}: {what}; choose an existing folder")
    try:
        # Without a name: nothing stays there, whatever ends this process.
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(b"0")
            probe.flush()
            flags = fcntl.fcntl(probe, fcntl.F_GETFL)
            fcntl.fcntl(probe, fcntl.F_SETFL, flags | getattr(os, "O_DIRECT", 0))
        free = shutil.disk_usage(path).free
    except OSError as error:
        raise ConfigError(
            f"--nvme-path {path}: not writable, or not with O_DIRECT: "
            f"{error.strerror or error}; choose a writable folder on a local disk"
        ) from error
    return replace(hardware, nvme_path=str(path.resolve()), nvme_free_bytes=free)
