"""`autotune report`: prints a study from its storage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autotune.answer.strategy_legend import STRATEGY_LEGEND
from autotune.cli.options import AllRows, Storage

__all__ = ["EXAMPLES", "report"]

EXAMPLES = f"""\
Examples:
  autotune report results/tiny-full-512-2xcpu
  autotune report results/tiny-full-512-2xcpu --json > study.json

{STRATEGY_LEGEND}"""
"""The text below the options of --help."""


def report(
    study: Annotated[Path, typer.Argument(help="Folder of a study, such as results/my-study.")],
    storage: Storage = None,
    all_rows: AllRows = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document with every trial.")
    ] = False,
) -> None:
    """Print a study: its Pareto front, failed trials and pruned trials.

    The study is not changed. A search may still be running in it.
    """
    from autotune.answer.export import exported_to
    from autotune.answer.report import render_report
    from autotune.answer.report_document import report_json
    from autotune.cli.console import answer_console, print_document
    from autotune.study.stored import read_study
    from autotune.uncollected import uncollected

    with uncollected():
        summary = read_study(study, storage)
        exported = exported_to(summary.best, study / "exports") if summary.best else None
        console = answer_console()
        if as_json:
            print_document(report_json(summary, exported))
        else:
            console.print(render_report(summary, exported, all_rows=all_rows), crop=False)
