"""`autotune doctor`: what this machine can do, what is missing, and how fast it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autotune.cli.options import MOST_DEVICES

if TYPE_CHECKING:
    from autotune.machine.hardware import Hardware

__all__ = ["EXAMPLES", "doctor"]

EXAMPLES = """\
Examples:
  autotune doctor
  autotune doctor --build
  autotune doctor --measure
  autotune doctor --measure --nvme-path /local_nvme

--build compiles once per machine what a search would otherwise compile within its
budget, about a minute for the first trial with an optimizer on the host.

What --measure finds is kept for this kind of device below ~/.config/autotune
(or XDG_CONFIG_HOME), and predictions on this machine use it from then on."""
"""Shown below the options."""


def doctor(
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Measure this machine's own rates first, in less than a minute: matrix products, "
            "memory, launches, copies and, with several GPUs, the links between them. GPUs are "
            "used for some seconds.",
        ),
    ] = False,
    build: Annotated[
        bool,
        typer.Option(
            "--build",
            help="Compile DeepSpeed's extensions that trials may need (CPU Adam, and async I/O "
            "where libaio is installed), so that no search waits for it.",
        ),
    ] = False,
    devices: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_DEVICES,
            help="With --measure: GPUs to use, one rank each; without a GPU, CPU ranks.",
            show_default="all; without a GPU 2",
        ),
    ] = None,
    nvme_path: Annotated[
        Path | None,
        typer.Option(
            help="With --measure: a folder on the disk to measure too; 1 GiB is written there and "
            "removed.",
            show_default="none",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Examine this machine: GPUs, packages, compilers, memory, disk; say what to install.

    Nothing is downloaded; without --build nothing is compiled and, without
    --measure, no GPU memory is used. Exits with 1 where something is missing
    without which no trial can run, or could not be compiled.
    """
    from autotune.cli.console import answer_console, print_document
    from autotune.doctor import (
        examine,
        examine_rates,
        exit_status,
        render,
        render_rates,
        to_json,
    )
    from autotune.doctor.machine import detect_or_none
    from autotune.errors import ConfigError
    from autotune.machine.hardware import detect_hardware

    if not measure:
        for flag, value in (("--devices", devices), ("--nvme-path", nvme_path)):
            if value is not None:
                raise ConfigError(f"{flag} {value} is of use with --measure only; add it")
        hardware = detect_or_none()
    else:
        hardware = detect_hardware(devices)
        _measure(hardware, nvme_path)
    is_built = not build or _build(hardware or detect_hardware(devices))
    checks = examine()
    stored = examine_rates(hardware)[1] if hardware is not None else None
    console = answer_console()
    if as_json:
        print_document(to_json(checks, stored))
    else:
        console.print(render(checks))
        if stored is not None and hardware is not None:
            console.print(render_rates(stored, hardware))
    raise typer.Exit(exit_status(checks) if is_built else 1)


def _build(hardware: Hardware) -> bool:
    """Compile, and tell of it on stderr; whether all that can be is there."""
    from autotune.cli.console import error_console
    from autotune.doctor import compile_extensions

    console = error_console()
    return compile_extensions(
        hardware, lambda words: console.print(words, markup=False, soft_wrap=True)
    )


def _measure(hardware: Hardware, nvme_path: Path | None) -> None:
    """Measure, tell of it on stderr, and keep what was found."""
    import time
    from datetime import UTC, datetime

    from autotune.cli.console import error_console
    from autotune.doctor import RATE_LINES
    from autotune.doctor.measure import measure_rates
    from autotune.machine.hardware import with_nvme
    from autotune.machine.rates_file import write_rates

    measured = with_nvme(hardware, nvme_path) if nvme_path is not None else hardware
    console, started = error_console(), time.monotonic()

    def say(words: str) -> None:
        stamp = f"[{time.monotonic() - started:5.1f} s] "
        console.print(stamp + words, markup=False, soft_wrap=True)

    def on_rate(rate: str, value: float) -> None:
        line = RATE_LINES[rate]
        say(f"{line.words}: {line.value(value)}")

    say(f"measuring {hardware}; other work on it now would be measured too")
    rates = measure_rates(measured, on_rate=on_rate, on_failure=say)
    path = write_rates(hardware, rates, datetime.now(UTC).isoformat(timespec="seconds"))
    say(f"kept in {path}")
