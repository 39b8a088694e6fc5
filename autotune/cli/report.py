"""`autotune report`: prints a study from its storage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autotune.cli.options import Storage

__all__ = ["EXAMPLES", "report"]

EXAMPLES = """\
Examples:
  autotune report results/tiny-full-512-2xcpu
  autotune report results/tiny-full-512-2xcpu --json > study.json"""
"""Shown below the options."""


def report(
    study: Annotated[Path, typer.Argument(help="A study's folder, such as results/my-study.")],
    storage: Storage = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document with every trial.")
    ] = False,
) -> None:
    """Print a study: the Pareto front, what failed and what was ruled out, and why.

    It is read from the storage, which stays as it is.
    A search may still be running in the study.
    """
    from autotune.answer.export import exported_to
    from autotune.answer.report import render_report
    from autotune.answer.report_document import report_json
    from autotune.cli.console import answer_console, print_document
    from autotune.study.stored import read_study

    summary = read_study(study, storage)
    exported = exported_to(summary.best, study / "exports") if summary.best else None
    console = answer_console()
    if as_json:
        print_document(report_json(summary, exported))
    else:
        console.print(render_report(summary, exported), crop=False)
