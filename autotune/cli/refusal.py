"""A question that nothing fits: what the package found is printed, and the command ends."""

from __future__ import annotations

from typing import NoReturn

import typer

from autotune.cli.console import error_console, print_document
from autotune.nothing_fits.shortfall import Shortfall, render_shortfall, shortfall_json

__all__ = ["refuse"]


def refuse(shortfall: Shortfall, *, as_json: bool) -> NoReturn:
    """Print what is missing and what would fit; ends with exit status 1.

    Args:
        shortfall: what was found.
        as_json: print a document on stdout besides.
    """
    if as_json:
        print_document(shortfall_json(shortfall))
    error_console().print(render_shortfall(shortfall), crop=False)
    raise typer.Exit(1)
