"""The measured rates of this machine, beside those of its data sheet.

Does not know how it is measured, nor where it is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from autotune.doctor.check import Check
from autotune.errors import ConfigError
from autotune.machine.hardware import DEVICE_KINDS, GB, Hardware
from autotune.machine.rates import Rates
from autotune.machine.rates_file import StoredRates, read_rates

__all__ = ["RATE_LINES", "RateLine", "examine_rates", "rates_table"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RateLine:
    """How one of the rates is shown."""

    rate: str
    """The field of `Rates`."""
    words: str
    unit: str
    unit_size: float

    def value(self, measured: float) -> str:
        """With its unit, three figures."""
        return f"{measured / self.unit_size:.3g} {self.unit}"


def _line(rate: str, words: str, unit: str, unit_size: float) -> RateLine:
    return RateLine(rate=rate, words=words, unit=unit, unit_size=unit_size)


RATE_LINES = {
    line.rate: line
    for line in (
        _line("matmul_flops_per_s", "matrix products in 16 bit", "TFLOP/s", 1e12),
        _line("memory_bytes_per_s", "device memory, copies", "GB/s", GB),
        _line("kernel_launch_s", "launch of a small kernel", "µs", 1e-6),
        _line("host_to_device_bytes_per_s", "host to device, pinned", "GB/s", GB),
        _line("device_to_host_bytes_per_s", "device to host, pinned", "GB/s", GB),
        _line("host_memory_bytes_per_s", "host memory, copies", "GB/s", GB),
        _line("nvme_bytes_per_s", "disk under --nvme-path", "GB/s", GB),
        _line("link_bytes_per_s", "links between devices (all-reduce)", "GB/s", GB),
        _line("collective_s", "latency of a collective", "µs", 1e-6),
    )
}
"""The line of each field of `Rates`, in its order."""


def rates_table(rates: Rates, hardware: Hardware) -> Iterator[tuple[str, str, str, str]]:
    """Rows: name, measured rate, rate of the data sheet, measured fraction of it."""
    sheet: dict[str, float] = {}
    if hardware.device_kind in DEVICE_KINDS:
        sheet = {
            "matmul_flops_per_s": hardware.flops_per_s,
            "memory_bytes_per_s": hardware.memory_bytes_per_s,
        }
    for rate, line in RATE_LINES.items():
        measured, promised = getattr(rates, rate), sheet.get(rate)
        yield (
            line.words,
            "not measured" if measured is None else line.value(measured),
            "" if promised is None else line.value(promised),
            f"{measured / promised:.0%}" if measured and promised else "",
        )


def examine_rates(hardware: Hardware) -> tuple[Check, StoredRates | None]:
    """The check of the stored rates of this machine, and the rates if there are any."""
    name = "measured rates"
    try:
        stored = read_rates(hardware)
    except ConfigError as error:
        return Check.warning(name, str(error), "type: autotune doctor --measure"), None
    if stored is None:
        words = (
            f"{hardware.device_kind} was not measured; predictions use its data sheet or assumed "
            "rates; "
        )
        return Check.ok(name, words + "autotune doctor --measure measures them"), None
    devices = f"{stored.num_devices} x {stored.device_kind}"
    return Check.ok(name, f"{devices}, measured {stored.measured_at}"), stored
