"""The whole examination, for people as a table and for programs as one JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.doctor.bytecode import examine_bytecode
from autotune.doctor.check import Check, CheckStatus
from autotune.doctor.machine import (
    detect_or_none,
    examine_cpu_precisions,
    examine_machine,
    has_gpu,
)
from autotune.doctor.packages import examine_packages
from autotune.doctor.rates import examine_rates, rates_table
from autotune.doctor.toolchain import examine_toolchain
from autotune.machine.hardware import Hardware
from autotune.machine.rates_file import StoredRates

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["examine", "exit_status", "render", "render_rates", "to_json"]


def examine(results_folder: Path = Path("results")) -> tuple[Check, ...]:
    """Look at everything a search needs.

    Args:
        results_folder: where studies are to be kept; need not exist.
    """
    hardware = detect_or_none()
    rates = [examine_rates(hardware)[0]] if hardware is not None else []
    return (
        *examine_packages(has_gpu=has_gpu(hardware)),
        examine_bytecode(),
        *examine_machine(hardware, results_folder),
        *rates,
        *examine_toolchain(),
        examine_cpu_precisions(),
    )


def exit_status(checks: Sequence[Check]) -> int:
    """1 if no trial can run because something is missing, else 0."""
    return int(any(check.status is CheckStatus.MISSING for check in checks))


def to_json(checks: Sequence[Check], stored: StoredRates | None = None) -> dict[str, Any]:
    """One JSON document: `exit_status`, `checks`, and what was measured as `measured`, or null."""
    return {
        "exit_status": exit_status(checks),
        "checks": [
            {
                "name": check.name,
                "status": str(check.status),
                "detail": check.detail,
                "remedy": check.remedy,
            }
            for check in checks
        ],
        "measured": asdict(stored) if stored is not None else None,
    }


def render(checks: Sequence[Check]) -> RenderableType:
    """A table with one row per check and its remedy below the finding. Contains no markup."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    styles = {CheckStatus.OK: "green", CheckStatus.WARNING: "yellow", CheckStatus.MISSING: "red"}
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found", overflow="fold")
    for check in checks:
        found = Text(check.detail)
        if check.remedy:
            found.append(f"\n{check.remedy}", style="bold")
        style = styles[check.status]
        table.add_row(Text(check.name), Text(str(check.status), style=style), found)
    return Group(table, Text(_verdict(checks), style="bold"))


def render_rates(stored: StoredRates, hardware: Hardware) -> RenderableType:
    """The measured rates beside those of the data sheet."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(f"{stored.num_devices} x {stored.device_kind}")
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("data sheet", justify="right", no_wrap=True)
    table.add_column("reached", justify="right", no_wrap=True)
    for row in rates_table(stored.rates, hardware):
        table.add_row(*row)
    return table


def _verdict(checks: Sequence[Check]) -> str:
    missing = [check.name for check in checks if check.status is CheckStatus.MISSING]
    if missing:
        return f"No trial can run here. Fix this first: {', '.join(missing)}."
    warnings = sum(check.status is CheckStatus.WARNING for check in checks)
    return f"Trials can run here. Warnings: {warnings}." if warnings else "Trials can run here."
