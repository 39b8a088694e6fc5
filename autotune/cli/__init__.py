"""The command line: builds the objects, passes them to each other, prints.

stdout carries the answer, stderr the progress. Exit status: 0 done, 1 nothing fits or the run
failed, 2 wrong use.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from autotune.cli.command import Command, usage_line
from autotune.cli.doctor import EXAMPLES as DOCTOR_EXAMPLES
from autotune.cli.doctor import doctor
from autotune.cli.export import EXAMPLES as EXPORT_EXAMPLES
from autotune.cli.export import export
from autotune.cli.plan import EXAMPLES as PLAN_EXAMPLES
from autotune.cli.plan import plan
from autotune.cli.report import EXAMPLES as REPORT_EXAMPLES
from autotune.cli.report import report
from autotune.cli.run import EXAMPLES as RUN_EXAMPLES
from autotune.cli.run import run
from autotune.cli.search import EXAMPLES as SEARCH_EXAMPLES
from autotune.cli.search import search
from autotune.cli.streams import standard_streams
from autotune.errors import AutotuneError, LaunchError
from autotune.names import one_line

__all__ = ["app", "main"]

app = typer.Typer(
    name="autotune",
    help="Find the fastest way to fine-tune a model on your GPUs, by measuring it.",
    epilog="""\
Start with:
  autotune doctor
  autotune search --model tiny --budget 2m
  autotune report results/tiny-full-512-2xcpu
  autotune export results/tiny-full-512-2xcpu --pick balanced
  autotune plan --model 70B --hardware 8xH100-80GB

Each command has its own --help, with examples.""",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.command(cls=Command, epilog=SEARCH_EXAMPLES)(search)
app.command(cls=Command, epilog=EXPORT_EXAMPLES)(export)
app.command(cls=Command, epilog=RUN_EXAMPLES)(run)
app.command(cls=Command, epilog=PLAN_EXAMPLES)(plan)
app.command(cls=Command, epilog=REPORT_EXAMPLES)(report)
app.command(cls=Command, epilog=DOCTOR_EXAMPLES)(doctor)


def _print_version(is_asked: bool) -> None:
    """Print the version and end."""
    if is_asked:
        from importlib.metadata import version

        print(f"autotune {version('autotune')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _autotune(
    context: typer.Context,
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        # Rich prints it by itself, and what is left of it is empty.
        print(context.get_help(), end="")


def main() -> None:
    """Entry point. Expected errors become one line and an exit status."""
    with standard_streams() as streams:
        status = _run()
        if words := streams.lost_answer:
            _say(words)
            status = status or 1
    sys.exit(status)


def _run() -> int:
    """Run the command line; its exit status."""
    try:
        return int(app(prog_name="autotune", standalone_mode=False) or 0)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except typer.TyperException as error:
        _say(usage_line(error))
        return error.exit_code
    except AutotuneError as error:
        _say(str(error))
        return 1 if isinstance(error, LaunchError) else 2
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        _say(f"{name}{error.strerror or error}")
        return 1


def _say(words: str) -> None:
    print(f"autotune: {one_line(words)}", file=sys.stderr)
