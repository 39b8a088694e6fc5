"""`autotune export`: a folder to train with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autotune.cli.options import MOST_TRIALS, Storage

if TYPE_CHECKING:
    from autotune.study.summary import StudySummary
    from autotune.trials.trial import Trial

__all__ = ["EXAMPLES", "export"]

EXAMPLES = """\
Examples:
  autotune export results/tiny-full-512-2xcpu
  autotune export results/tiny-full-512-2xcpu --pick balanced
  autotune export results/tiny-full-512-2xcpu --trial 3 --out my-training

A search exports the fastest by itself. A folder that holds something else is never overwritten."""
"""Shown below the options."""


def export(
    study: Annotated[Path, typer.Argument(help="A study's folder, such as results/my-study.")],
    trial: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=MOST_TRIALS,
            help="The trial to export, by its number in the report; any that was measured. "
            "Goes before --pick.",
            show_default="see --pick",
        ),
    ] = None,
    pick: Annotated[
        str,
        typer.Option(
            help="Which trial of the Pareto front: throughput (the fastest), memory (the leanest) "
            "or balanced (the knee between them)."
        ),
    ] = "throughput",
    out: Annotated[
        Path | None,
        typer.Option(help="The folder to write.", show_default="<study>/exports/trial-<n>"),
    ] = None,
    storage: Storage = None,
) -> None:
    """Write a trial's strategy as files to train with.

    ds_config.json   DeepSpeed's configuration, as the trial ran with it
    strategy.yaml    what a JSON cannot hold; autotune.apply puts it on a model
    launch.sh        the launch line
    README.md        training code for DeepSpeed, the HF Trainer and Accelerate
    provenance.json  study, trial, versions, hardware, figures
    """
    from autotune.answer.export import export_trial
    from autotune.cli.stored import read_study

    summary = read_study(study, storage)
    chosen = _chosen(summary, trial, pick)
    folder = out or study / "exports" / f"trial-{chosen.number}"
    export_trial(summary, chosen, folder)
    print(folder)


def _chosen(summary: StudySummary, number: int | None, which: str) -> Trial:
    from autotune.errors import ConfigError
    from autotune.study.pareto import Pick

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
