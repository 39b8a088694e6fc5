"""A YAML file that describes one host: a kind of device that is known, or the figures of another.

Does not look at this machine, nor know what is trained.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from autotune.errors import ConfigError
from autotune.machine.device_kinds import ADA, AMPERE, GB, GIB, DeviceKind
from autotune.machine.device_names import named_kind
from autotune.machine.hardware import DeviceType, Hardware
from autotune.machine.rates import Rates
from autotune.machine.unsupported_devices import UnsupportedDevice
from autotune.names import PlainName, PrintableText, visible
from autotune.yaml_file import Section, parse_yaml, read_text

__all__ = [
    "LEAST_FIGURE",
    "MOST_DEVICES",
    "MOST_GIB",
    "NVME_PATH",
    "assumed_host_bytes",
    "hardware_of",
    "read_hardware_file",
]

MOST_DEVICES = 1024
"""The most devices of a host; the largest hosts on sale have 72."""

MOST_GIB = 1_000_000.0
"""A pebibyte. Above it figures mean nothing, and arithmetic of 64 bit ends."""

LEAST_FIGURE, _MOST_FIGURE = 1e-6, 1e9
"""The largest figure in a file, in its own unit."""

NVME_PATH = "/local_nvme"
"""Where a disk is taken to be mounted of which only the size is given."""

_HOST_SHARE = 3
_MOST_HOST_BYTES = 256 * GIB
"""Host memory of a GPU where none is given: three times the GPU's own, 256 GiB at most. Public
data sheets: DGX-2 (V100-32GB) 96 GB a GPU, DGX A100 128 and 256 GB, DGX H100 256 GB."""


def _positive(most: float = _MOST_FIGURE) -> Any:
    return Field(default=None, ge=LEAST_FIGURE, le=most, allow_inf_nan=False)


def _read_capability(value: object) -> tuple[int, int]:
    """CUDA writes 8.6 for a major number 8 and a minor 6."""
    major, _, minor = str(value).partition(".")
    if isinstance(value, int | float) and _CAPABILITY.fullmatch(str(value)):
        return int(major), int(minor or 0)
    raise ValueError(f"compute_capability must be such as 8.0 or 8.6, got {visible(repr(value))}")


_CAPABILITY = re.compile(r"[0-9]{1,2}(\.[0-9])?")
_Capability = Annotated[tuple[int, int], BeforeValidator(_read_capability)]


class _Rates(Section):
    """What the host was measured to attain, as `autotune doctor --measure` shows it."""

    matmul_tflops: float | None = _positive()
    memory_gb_per_s: float | None = _positive()
    kernel_launch_us: float | None = _positive()
    host_to_device_gb_per_s: float | None = _positive()
    device_to_host_gb_per_s: float | None = _positive()
    host_memory_gb_per_s: float | None = _positive()
    nvme_gb_per_s: float | None = _positive()
    link_gb_per_s: float | None = _positive()
    collective_us: float | None = _positive()

    def to_rates(self) -> Rates:
        """In the units of `Rates`."""
        in_units: dict[str, float] = {}
        for key, value in self.model_dump(exclude_none=True).items():
            for ending, (name, unit) in _UNITS.items():
                if key.endswith(ending):
                    in_units[key.removesuffix(ending) + name] = value * unit
        return Rates(**in_units)


_UNITS = {
    "_tflops": ("_flops_per_s", 1e12),
    "_gb_per_s": ("_bytes_per_s", GB),
    "_us": ("_s", 1e-6),
}
"""How a file's keys end, and what stands in their place in `Rates`, by which factor."""


class _Document(Section):
    """What a file says of one host; rates are dense peaks of one device."""

    device: PlainName
    count: int = Field(default=1, ge=1, le=MOST_DEVICES)
    memory_gib: float | None = _positive(MOST_GIB)
    tflops: float | None = _positive()
    bandwidth_gb_per_s: float | None = _positive()
    host_memory_gib: float | None = _positive(MOST_GIB)
    nvme_gib: float | None = _positive(MOST_GIB)
    nvme_path: PrintableText = NVME_PATH
    compute_capability: _Capability | None = None
    bf16: bool | None = None
    fp8: bool | None = None
    rates: _Rates = Field(default_factory=_Rates)


def assumed_host_bytes(device_memory_bytes: int, num_devices: int) -> int:
    """Host memory that is assumed where none is given: see `_HOST_SHARE`."""
    return num_devices * min(_HOST_SHARE * device_memory_bytes, _MOST_HOST_BYTES)


def hardware_of(kind: DeviceKind, count: int) -> Hardware:
    """A host with so many devices of a kind, by its data sheet."""
    return Hardware(
        device_type=DeviceType.CUDA,
        device_kind=kind.name,
        num_devices=count,
        device_memory_bytes=kind.memory_bytes,
        host_memory_bytes=assumed_host_bytes(kind.memory_bytes, count),
        flops_per_s=kind.flops_per_s,
        memory_bytes_per_s=kind.memory_bytes_per_s,
        supports_bf16=kind.supports_bf16,
        supports_tf32=kind.supports_tf32,
        supports_fp8=kind.supports_fp8,
        compute_capability=kind.compute_capability,
    )


def read_hardware_file(path: Path) -> tuple[Hardware, bool]:
    """One host, and whether the file says how much memory it has.

    Raises:
        ConfigError: no such file, or a mistake in it; the message has the flag and the line.
    """
    name = f"--hardware {path}"
    text = read_text(path, name, if_missing="; give one, or a device such as 8xH100-80GB")
    document = parse_yaml(text, name, _Document)
    kind = named_kind(document.device)
    if isinstance(kind, DeviceKind):
        host = hardware_of(kind, document.count)
    else:
        _check_described(kind, document, name)
        known = kind.compute_capability if isinstance(kind, UnsupportedDevice) else None
        host = _described(document, known)
    _check_precisions(host, document, name)
    host = _with_own_figures(host, document)
    if document.host_memory_gib is None:
        host_bytes = assumed_host_bytes(host.device_memory_bytes, host.num_devices)
        return replace(host, host_memory_bytes=host_bytes), False
    return replace(host, host_memory_bytes=int(document.host_memory_gib * GIB)), True


def _check_described(kind: UnsupportedDevice | str, document: _Document, name: str) -> None:
    """Refuse a file that does not say enough of a device that the table does not have.

    Raises:
        ConfigError: figures are missing, or nothing says what it computes with.
    """
    unsupported = kind if isinstance(kind, UnsupportedDevice) else None
    if unsupported and not unsupported.is_nvidia:
        raise ConfigError(f"{name}: {document.device} is not supported: {unsupported.reason}")
    words = f"{unsupported.name}: {unsupported.reason}" if unsupported else str(kind)
    figures = ("memory_gib", "tflops", "bandwidth_gb_per_s")
    missing = [key for key in figures if getattr(document, key) is None]
    if missing:
        raise ConfigError(
            f"{name}: {words}; for a new device add {', '.join(missing)} to the file"
        )
    says_what_it_computes = (
        document.compute_capability,
        document.bf16,
        document.fp8 or None,
        unsupported and unsupported.compute_capability,
    )
    if all(each is None for each in says_what_it_computes):
        raise ConfigError(
            f"{name}: the file does not say whether {document.device} computes bf16; add its "
            "compute_capability, such as 8.0 (nvidia-smi --query-gpu=compute_cap tells), or bf16: "
            "true or false"
        )


def _described(document: _Document, known: tuple[int, int] | None) -> Hardware:
    """A device of which only the file knows; rates and memory follow from it elsewhere."""
    capability = document.compute_capability or known
    if capability is None:
        computes_bf16 = bool(document.fp8) or document.bf16 is True
    else:
        computes_bf16 = capability >= AMPERE
    return Hardware(
        device_type=DeviceType.CUDA,
        device_kind=document.device,
        num_devices=document.count,
        device_memory_bytes=0,
        host_memory_bytes=0,
        flops_per_s=0.0,
        memory_bytes_per_s=0.0,
        supports_bf16=computes_bf16,
        supports_tf32=computes_bf16,
        supports_fp8=capability is not None and capability >= ADA,
        compute_capability=capability,
    )


def _check_precisions(host: Hardware, document: _Document, name: str) -> None:
    """Refuse a precision that the device is known not to compute.

    Raises:
        ConfigError: bf16 or fp8 below the compute capability that has it.
    """
    capability = document.compute_capability or host.compute_capability
    for key, least in (("bf16", AMPERE), ("fp8", ADA)):
        if getattr(document, key) and capability is not None and capability < least:
            raise ConfigError(
                f"{name}: {key}: true needs compute capability {_dotted(least)} or above, but "
                f"{document.device} has {_dotted(capability)}; remove {key}"
            )
    if document.fp8 and document.bf16 is False:
        raise ConfigError(
            f"{name}: fp8: true needs bf16, but the file has bf16: false; change one of them"
        )


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def _with_own_figures(host: Hardware, document: _Document) -> Hardware:
    """What the file says itself goes before the data sheet."""
    if document.memory_gib is not None:
        host = replace(host, device_memory_bytes=int(document.memory_gib * GIB))
    if document.tflops is not None:
        host = replace(host, flops_per_s=document.tflops * 1e12)
    if document.bandwidth_gb_per_s is not None:
        host = replace(host, memory_bytes_per_s=document.bandwidth_gb_per_s * GB)
    if (own := document.compute_capability) is not None:
        is_ampere, is_ada = own >= AMPERE, own >= ADA
        host = replace(
            host,
            compute_capability=own,
            supports_bf16=is_ampere,
            supports_tf32=is_ampere,
            supports_fp8=is_ada,
        )
    if document.bf16 is not None:
        # Every GPU with bf16 has TensorFloat-32, and none without.
        host = replace(host, supports_bf16=document.bf16, supports_tf32=document.bf16)
    if document.fp8 is not None:
        host = replace(host, supports_fp8=document.fp8)
    if document.nvme_gib is not None:
        free = int(document.nvme_gib * GIB)
        host = replace(host, nvme_path=document.nvme_path, nvme_free_bytes=free)
    if document.rates != _Rates():
        host = replace(host, rates=document.rates.to_rates())
    return host
