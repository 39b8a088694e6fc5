"""Reads the hardware that a user names: `8xH100-80GB`, or a file that describes a host.

Does not look at this machine, nor know what is trained.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from autotune.errors import ConfigError
from autotune.machine.device_names import KNOWN_KINDS, named_kind, shortened
from autotune.machine.hardware import GIB, Hardware
from autotune.machine.hardware_file import (
    LEAST_FIGURE,
    MOST_DEVICES,
    MOST_GIB,
    NVME_PATH,
    assumed_host_bytes,
    hardware_of,
    read_hardware_file,
)
from autotune.machine.unsupported_devices import UnsupportedDevice

__all__ = ["HardwareSpec", "assumed_host_bytes", "read_hardware"]

_COUNTED = re.compile(r"(?P<count>[+-]?[0-9]+)\s*[xX*\u00d7]\s*(?P<kind>.*)", re.DOTALL)

_MOST_NODES = 1_000_000
_LONGEST_NUMBER = 20
"""Digits of a number that a message repeats."""


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
    if num_nodes > _MOST_NODES:
        raise ConfigError(f"--nodes must be at most {_MOST_NODES:,}, got {num_nodes:.3g}")
    for flag, gib in (("--host-memory", host_memory_gib), ("--nvme", nvme_gib)):
        if gib is not None and not gib >= LEAST_FIGURE:
            raise ConfigError(f"{flag} must be more than 0 GiB, got {gib}")
        if gib is not None and gib > MOST_GIB:
            raise ConfigError(f"{flag} must be at most {MOST_GIB:,.0f} GiB, got {gib}")
    path = Path(text)
    if path.suffix.lower() in (".yaml", ".yml") or (text and _exists(path)):
        host, has_host = read_hardware_file(path)
    else:
        host, has_host = _read_words(text), False
    if host_memory_gib is not None:
        host, has_host = replace(host, host_memory_bytes=int(host_memory_gib * GIB)), True
    if nvme_gib is not None:
        mount = host.nvme_path or NVME_PATH
        host = replace(host, nvme_path=mount, nvme_free_bytes=int(nvme_gib * GIB))
    return HardwareSpec(host=host, num_nodes=num_nodes, has_assumed_host=not has_host)


def _exists(path: Path) -> bool:
    """Whether there is something other than a folder; a name that no file can have is none."""
    try:
        return path.exists() and not path.is_dir()
    except (OSError, ValueError):
        return False


def _read_words(text: str) -> Hardware:
    counted = _COUNTED.fullmatch(text.strip())
    number, name = (counted["count"], counted["kind"]) if counted else ("1", text)
    count = _read_count(number, text)
    if not name.strip():
        raise ConfigError(
            f"--hardware {text!r} names no device; give one such as 8xH100-80GB, or a file"
        )
    kind, flag = named_kind(name.strip()), f"--hardware {shortened(text)}"
    if isinstance(kind, str):
        raise ConfigError(f"{flag}: {kind}; or describe yours in a YAML file")
    if isinstance(kind, UnsupportedDevice):
        way_out = "describe it in a YAML file" if kind.is_nvidia else f"choose from {KNOWN_KINDS}"
        raise ConfigError(f"{flag}: {kind.name} is not supported: {kind.reason}; {way_out}")
    return hardware_of(kind, count)


def _read_count(number: str, text: str) -> int:
    digits = number.lstrip("+-0")
    if not digits or number[0] == "-":
        raise ConfigError(
            f"--hardware {shortened(text)}: the number of devices must be at least 1, got "
            f"{shortened(number)}"
        )
    if len(digits) > len(str(MOST_DEVICES)) or int(digits) > MOST_DEVICES:
        shown = digits if len(digits) <= _LONGEST_NUMBER else f"{digits[:_LONGEST_NUMBER]}..."
        raise ConfigError(
            f"--hardware {shortened(text)}: a host has at most {MOST_DEVICES:,} devices, got "
            f"{shown}; use --nodes for several hosts"
        )
    return int(digits)
