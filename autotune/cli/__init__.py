"""The command line: builds the objects, passes them to each other, prints.

stdout carries the answer, stderr the progress. Exit status: 0 done, 1 nothing fits or the run
failed, 2 wrong use.
"""

from __future__ import annotations

import os
import sys

import typer

from autotune.cli.doctor import EXAMPLES as DOCTOR_EXAMPLES
from autotune.cli.doctor import doctor
from autotune.cli.export import EXAMPLES as EXPORT_EXAMPLES
from autotune.cli.export import export
from autotune.cli.plan import EXAMPLES as PLAN_EXAMPLES
from autotune.cli.plan import plan
from autotune.cli.report import EXAMPLES as REPORT_EXAMPLES
from autotune.cli.report import report
from autotune.cli.search import EXAMPLES as SEARCH_EXAMPLES
from autotune.cli.search import search
from autotune.errors import AutotuneError, LaunchError

__all__ = ["app", "main"]

app = typer.Typer(
    name="autotune",
    help="Find the fastest way to fine-tune a model that fits your GPUs, by measuring it.",
    epilog="""\
Start with:
  autotune doctor
  autotune search --model tiny --budget 2m
  autotune report results/tiny-full-512-2xcpu
  autotune export results/tiny-full-512-2xcpu --pick balanced
  autotune plan --model 70B --hardware 8xH100-80GB

Each command has a --help of its own, with examples.""",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command(epilog=SEARCH_EXAMPLES)(search)
app.command(epilog=EXPORT_EXAMPLES)(export)
app.command(epilog=PLAN_EXAMPLES)(plan)
app.command(epilog=REPORT_EXAMPLES)(report)
app.command(epilog=DOCTOR_EXAMPLES)(doctor)


def main() -> None:
    """Entry point: errors of ours become one line and an exit status."""
    try:
        app()
    except AutotuneError as error:
        print(f"autotune: {error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, LaunchError) else 2)
    except BrokenPipeError:
        # The reader of our output, such as head, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
