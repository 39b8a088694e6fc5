"""`autotune doctor`: what this machine can do, and what is missing."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["doctor"]


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Examine this machine: GPUs, packages, compilers, memory, disk; say what to install.

    Nothing is compiled or downloaded, and no GPU memory is used.
    Exits with 1 where something is missing without which no trial can run.
    """
    import json

    from autotune.cli.console import answer_console
    from autotune.doctor import examine, exit_status, render, to_json

    checks = examine(with_torch=True)
    console = answer_console()
    if as_json:
        console.print_json(json.dumps(to_json(checks)))
    else:
        console.print(render(checks))
    raise typer.Exit(exit_status(checks))
