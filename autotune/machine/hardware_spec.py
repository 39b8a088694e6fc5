"""Hardware that is not here, as a user names it: `8xH100-80GB`, or a file that describes a host.

Does not look at this machine, nor know what is trained.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from autotune.errors import ConfigError
from autotune.machine.hardware import DEVICE_KINDS, GB, GIB, DeviceKind, DeviceType, Hardware
from autotune.machine.rates import Rates
from autotune.yaml_file import Section, nearest, parse_yaml, read_text

__all__ = ["HardwareSpec", "assumed_host_bytes", "read_hardware"]

_COUNTED = re.compile(r"(?P<count>[+-]?\d+)\s*[xX*\u00d7]\s*(?P<kind>.*)", re.DOTALL)

_HOST_SHARE = 3
_MOST_HOST_BYTES = 256 * GIB
"""Host memory of a GPU where none is given: three times the GPU's own, 256 GiB at most. Public
data sheets: DGX-2 (V100-32GB) 96 GB a GPU, DGX A100 128 and 256 GB, DGX H100 256 GB."""

_NVME_PATH = "/local_nvme"
"""Where a disk is taken to be mounted of which only the size is given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HardwareSpec:
    """Alike hosts that a plan is made for."""

    host: Hardware
    """One of them."""
    num_nodes: int = 1
    has_assumed_host: bool = False
    """Whether nobody said how much memory the host has."""

    @property
    def all_ranks(self) -> Hardware:
        """The devices of all hosts; memory and disk stay those of each."""
        return replace(
            self.host,
            num_devices=self.num_nodes * self.host.num_devices,
            num_nodes=self.num_nodes,
        )

    def __str__(self) -> str:
        """The way a person names it: `8 x H100-80GB`, `2 nodes of 8 x H100-80GB`."""
        return str(self.all_ranks)


def _positive() -> Any:
    return Field(default=None, gt=0, allow_inf_nan=False)


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

    device: str
    count: int = Field(default=1, ge=1)
    memory_gib: float | None = _positive()
    tflops: float | None = _positive()
    bandwidth_gb_per_s: float | None = _positive()
    host_memory_gib: float | None = _positive()
    nvme_gib: float | None = _positive()
    nvme_path: str = Field(default=_NVME_PATH, min_length=1)
    bf16: bool | None = None
    fp8: bool | None = None
    rates: _Rates = Field(default_factory=_Rates)


def assumed_host_bytes(device_memory_bytes: int, num_devices: int) -> int:
    """Host memory that is assumed where none is given: see `_HOST_SHARE`."""
    return num_devices * min(_HOST_SHARE * device_memory_bytes, _MOST_HOST_BYTES)


def read_hardware(
    text: str,
    *,
    num_nodes: int = 1,
    host_memory_gib: float | None = None,
    nvme_gib: float | None = None,
) -> HardwareSpec:
    """Read what the user gave to --hardware.

    Args:
        text: `8xH100-80GB`, a device kind alone for one of it, or the path of a YAML file.
        num_nodes: hosts of this kind.
        host_memory_gib: memory of one host; goes before what a file says.
        nvme_gib: free disk of one host for what is offloaded to NVMe; goes before a file too.

    Raises:
        ConfigError: no such device kind or file, or a mistake in it; the message names the flag.
    """
    if num_nodes < 1:
        raise ConfigError(f"--nodes must be at least 1, got {num_nodes}")
    for flag, gib in (("--host-memory", host_memory_gib), ("--nvme", nvme_gib)):
        if gib is not None and not 0 < gib < float("inf"):
            raise ConfigError(f"{flag} must be more than 0 GiB, got {gib}")
    path = Path(text)
    if path.suffix.lower() in (".yaml", ".yml") or (text and path.is_file()):
        host, has_host = _read_file(path)
    else:
        host, has_host = _read_words(text), False
    if host_memory_gib is not None:
        host, has_host = replace(host, host_memory_bytes=int(host_memory_gib * GIB)), True
    if nvme_gib is not None:
        mount = host.nvme_path or _NVME_PATH
        host = replace(host, nvme_path=mount, nvme_free_bytes=int(nvme_gib * GIB))
    return HardwareSpec(host=host, num_nodes=num_nodes, has_assumed_host=not has_host)


def _read_words(text: str) -> Hardware:
    counted = _COUNTED.fullmatch(text.strip())
    count, name = (int(counted["count"]), counted["kind"]) if counted else (1, text)
    if count < 1:
        raise ConfigError(f"--hardware {text}: there must be at least 1 device, got {count}")
    if not name.strip():
        raise ConfigError(
            f"--hardware {text!r} names no device; write such as 8xH100-80GB, or a file's path"
        )
    kind = _known_kind(name.strip())
    if isinstance(kind, str):
        raise ConfigError(f"--hardware {text}: {kind}; or describe another in a YAML file")
    return _hardware(kind, count)


def _known_kind(name: str) -> DeviceKind | str:
    """The device kind of a name, or in words why there is none.

    Case, blanks and dashes do not matter, and a beginning will do where one kind alone has it.
    """
    wanted = _plain(name)
    begins = [kind for key, kind in DEVICE_KINDS.items() if _plain(key).startswith(wanted)]
    exact = [kind for kind in begins if _plain(kind.name) == wanted]
    if exact or len(begins) == 1:
        return (exact or begins)[0]
    if begins:
        several = ", ".join(kind.name for kind in begins)
        return f"{name} may be any of {several}: choose one"
    hint = nearest(name.upper(), DEVICE_KINDS)
    known = f"known are {', '.join(DEVICE_KINDS)}"
    words = known if hint == known else f"{hint} {known[0].upper()}{known[1:]}"
    return f"there is no device kind {name!r}; {words}"


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


def _hardware(kind: DeviceKind, count: int) -> Hardware:
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
    )


def _read_file(path: Path) -> tuple[Hardware, bool]:
    """One host, and whether the file says how much memory it has."""
    name = f"--hardware {path}"
    text = read_text(path, name, if_missing="; give one, or a device such as 8xH100-80GB")
    document = parse_yaml(text, name, _Document)
    kind = _known_kind(document.device)
    rates = {key: getattr(document, key) for key in ("memory_gib", "tflops", "bandwidth_gb_per_s")}
    missing = [key for key, value in rates.items() if value is None]
    if isinstance(kind, str) and missing:
        raise ConfigError(
            f"--hardware {path}: {kind}; of another one the file says {', '.join(missing)} too"
        )
    if isinstance(kind, DeviceKind):
        host = _hardware(kind, document.count)
    else:
        # Rates and memory follow below, whatever stands here.
        host = Hardware(
            device_type=DeviceType.CUDA,
            device_kind=document.device,
            num_devices=document.count,
            device_memory_bytes=0,
            host_memory_bytes=0,
            flops_per_s=0.0,
            memory_bytes_per_s=0.0,
            supports_tf32=True,
        )
    host = _with_own_figures(host, document)
    if document.host_memory_gib is None:
        host_bytes = assumed_host_bytes(host.device_memory_bytes, host.num_devices)
        return replace(host, host_memory_bytes=host_bytes), False
    return replace(host, host_memory_bytes=int(document.host_memory_gib * GIB)), True


def _with_own_figures(host: Hardware, document: _Document) -> Hardware:
    """What the file says itself goes before the data sheet."""
    if document.memory_gib is not None:
        host = replace(host, device_memory_bytes=int(document.memory_gib * GIB))
    if document.tflops is not None:
        host = replace(host, flops_per_s=document.tflops * 1e12)
    if document.bandwidth_gb_per_s is not None:
        host = replace(host, memory_bytes_per_s=document.bandwidth_gb_per_s * GB)
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
