"""`autotune doctor`: checks this machine, and measures its rates."""

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

--build saves time in searches: without it, the first trial that needs an extension
compiles it, which takes about a minute of the budget.

--measure writes the rates below ~/.config/autotune (or XDG_CONFIG_HOME), one file
per device kind. Predictions on this machine use them from then on."""
"""The text below the options of --help."""


def doctor(
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="First measure the rates of this machine, in less than a minute: matrix "
            "products, memory, kernel launches, copies, and the links between GPUs.",
        ),
    ] = False,
    build: Annotated[
        bool,
        typer.Option(
            "--build",
            help="Compile the DeepSpeed extensions that trials may need: CPU Adam, and async I/O "
            "if libaio is installed.",
        ),
    ] = False,
    devices: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_DEVICES,
            help="With --measure: number of GPUs to use, one rank each; CPU ranks without a GPU.",
            show_default="all GPUs, or 2 CPU ranks",
        ),
    ] = None,
    nvme_path: Annotated[
        Path | None,
        typer.Option(
            help="With --measure: also measure the disk of this folder. 1 GiB is written and "
            "removed.",
            show_default="no disk",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check this machine: GPUs, packages, compilers, memory, disk.

    Each problem comes with a remedy. Nothing is downloaded. Nothing is
    compiled without --build, and no GPU memory is used without --measure.
    Exit status: 1 if no trial can run, or if an extension does not compile.
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
                raise ConfigError(f"{flag} {value} needs --measure; add it")
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
    """Compile the extensions with progress on stderr; whether all that can be compiled are."""
    from autotune.cli.console import error_console
    from autotune.doctor import compile_extensions

    console = error_console()
    return compile_extensions(
        hardware, lambda words: console.print(words, markup=False, soft_wrap=True)
    )


def _measure(hardware: Hardware, nvme_path: Path | None) -> None:
    """Measure the rates with progress on stderr, and store them."""
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

    say(f"Measuring {hardware}. Stop other work on it: it would change the result.")
    rates = measure_rates(measured, on_rate=on_rate, on_failure=say)
    path = write_rates(hardware, rates, datetime.now(UTC).isoformat(timespec="seconds"))
    say(f"Rates stored in {path}")
