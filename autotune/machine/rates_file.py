"""The file of measured rates: one JSON file for each kind of device, in the user's configuration.

Does not know how they are measured, nor what is predicted from them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from autotune.drafts import write_file
from autotune.errors import ConfigError, StorageError
from autotune.machine.hardware import DeviceType, Hardware
from autotune.machine.rates import Rates
from autotune.names import plain_name, printable, visible
from autotune.text_file import load_json

__all__ = ["StoredRates", "rates_path", "read_rates", "with_measured_rates", "write_rates"]

_MOST = 2.0**60
"""The largest rate; above it 64-bit arithmetic overflows."""

_LONGEST_SHOWN = 60
"""Characters of a key that a message repeats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredRates:
    """Rates of a machine, and when they were measured with how many of its devices."""

    device_kind: str
    num_devices: int
    measured_at: str
    """ISO 8601, UTC."""
    rates: Rates


def rates_path(hardware: Hardware) -> Path:
    """The file for this kind of device, there or not: below XDG_CONFIG_HOME, or ~/.config."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", hardware.device_kind)
    return Path(home) / "autotune" / "rates" / f"{name}.json"


def write_rates(hardware: Hardware, rates: Rates, measured_at: str) -> Path:
    """Keep what was measured on this machine, whole or not at all; the file.

    Raises:
        StorageError: it cannot be written.
    """
    path = rates_path(hardware)
    stored = StoredRates(
        device_kind=hardware.device_kind,
        num_devices=hardware.num_devices,
        measured_at=measured_at,
        rates=rates,
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(asdict(stored), indent=1) + "\n")
    except OSError as error:
        raise StorageError(
            f"{path}: the rates cannot be written: {error.strerror or error}; "
            "set XDG_CONFIG_HOME to a writable folder"
        ) from error
    return path


def read_rates(hardware: Hardware) -> StoredRates | None:
    """What was measured of this kind of device; None where nothing was.

    Raises:
        ConfigError: the file is damaged.
    """
    path = rates_path(hardware)
    try:
        record = load_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    try:
        values = dict(record["rates"])
        return StoredRates(
            device_kind=plain_name(str(record["device_kind"]), "device_kind"),
            num_devices=int(record["num_devices"]),
            measured_at=printable(str(record["measured_at"]), "measured_at"),
            rates=_checked(values),
        )
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def with_measured_rates(hardware: Hardware) -> Hardware:
    """The machine with the rates that were measured on it, as far as they are its own.

    On the CPU, ranks share cores, so rates are those of as many ranks alone. On GPUs links are
    known only where several devices were measured.

    Raises:
        ConfigError: the file is damaged.
    """
    stored = read_rates(hardware)
    if stored is None or stored.device_kind != hardware.device_kind:
        return hardware
    is_cpu = hardware.device_type is DeviceType.CPU
    if is_cpu and stored.num_devices != hardware.num_devices:
        return hardware
    return replace(hardware, rates=stored.rates)


def _checked(values: Mapping[str, Any]) -> Rates:
    known = {field.name for field in fields(Rates)}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"unknown rate {str(name)[:_LONGEST_SHOWN]!r}")
        if value is not None and not (isinstance(value, int | float) and 0 < value < _MOST):
            raise ValueError(f"{name} is not a positive number")
    return Rates(**values)


def _damaged(path: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"{path} cannot be read: {visible(str(error))}; type: autotune doctor --measure, "
        "or remove the file"
    )
