"""`autotune export`: a folder to train with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from autotune.study_summary import StudySummary
    from autotune.trial import Trial

__all__ = ["export"]


def export(
    study: Annotated[Path, typer.Argument(help="A study's folder, such as results/my-study.")],
    trial: Annotated[
        int | None, typer.Option(help="The trial to export.", show_default="see --pick")
    ] = None,
    pick: Annotated[
        str, typer.Option(help="Or which end of the front: throughput, memory or balanced.")
    ] = "throughput",
    out: Annotated[
        Path | None,
        typer.Option(help="The folder to write.", show_default="<study>/exports/trial-<n>"),
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="The Optuna storage URL that the search was given, if any.")
    ] = None,
) -> None:
    """Write a trial's strategy as files to train with.

    ds_config.json for DeepSpeed, strategy.yaml for what a JSON cannot hold, the launch line, a
    README that shows how, and where the figures come from.
    """
    from autotune.cli.stored import read_study
    from autotune.export import export_trial

    summary = read_study(study, storage)
    chosen = _chosen(summary, trial, pick)
    folder = out or study / "exports" / f"trial-{chosen.number}"
    export_trial(summary, chosen, folder)
    print(folder)


def _chosen(summary: StudySummary, number: int | None, which: str) -> Trial:
    from autotune.errors import ConfigError
    from autotune.pareto import Pick

    if number is not None:
        for trial in summary.trials:
            if trial.number == number and trial.measurement is not None:
                return trial
        measured = [str(t.number) for t in summary.trials if t.measurement is not None]
        raise ConfigError(
            f"--trial {number}: the study has no measured trial of that number; "
            f"choose from {', '.join(measured) or 'none: nothing was measured'}"
        )
    if which not in list(Pick):
        raise ConfigError(f"--pick {which!r}: choose from {', '.join(Pick)}")
    picked = summary.picks.get(Pick(which))
    if picked is None:
        raise ConfigError(f"{summary.name}: no trial fits, so there is nothing to export")
    return picked
