"""`autotune export`: writes a folder to train with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autotune.cli.options import MOST_TRIALS, Storage

if TYPE_CHECKING:
    from autotune.foreign.tool import Tool
    from autotune.question.goal import Goal
    from autotune.study.summary import StudySummary
    from autotune.trials.trial import Trial

__all__ = ["EXAMPLES", "export"]

EXAMPLES = """\
Examples:
  autotune export results/tiny-full-512-2xcpu
  autotune export results/tiny-full-512-2xcpu --pick balanced
  autotune export results/tiny-full-512-2xcpu --trial 3 --out my-training
  autotune export results/tiny-full-512-2xcpu --format axolotl

A search exports the best trial for its --objective by itself.
A folder with other content is never overwritten."""
"""The text below the options of --help."""


_OWN_FORMAT = "folder"


def export(
    study: Annotated[Path, typer.Argument(help="Folder of a study, such as results/my-study.")],
    trial: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=MOST_TRIALS,
            help="Number of the trial to export, as in the report. It must have been measured. "
            "Overrides --pick.",
            show_default="see --pick",
        ),
    ] = None,
    pick: Annotated[
        str,
        typer.Option(
            help="Trial to export: throughput (the fastest), memory (the least memory), balanced "
            "(the knee between them) or energy (the least energy per token)."
        ),
    ] = "throughput",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write.", show_default="<study>/exports/trial-<n>"),
    ] = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="What is to read it: folder (the files below), deepspeed, accelerate, axolotl or "
            "llamafactory. What a tool has no key for is said, and stands in its file as a "
            "comment.",
        ),
    ] = "folder",
    storage: Storage = None,
) -> None:
    """Write the strategy of a trial as files to train with.

    ds_config.json   the DeepSpeed configuration of the trial
    strategy.yaml    the other knobs; autotune.apply sets them on a model
    launch.sh        the environment and the launch command
    README.md        training code for DeepSpeed, HF Trainer and Accelerate
    provenance.json  study, trial, versions, hardware, figures
    """
    from autotune.answer.export import export_for_tool, export_into, export_trial
    from autotune.cli.console import error_console
    from autotune.study.stored import read_study

    which = None if trial is not None else _pick(pick)
    tool = _tool(format_)
    summary = read_study(study, storage)
    chosen = _measured(summary, trial) if which is None else _picked(summary, which)
    if tool is not None:
        place = out or study / "exports" / f"trial-{chosen.number}-{tool}"
        folder, unsaid = export_for_tool(summary, chosen, tool, place)
        if unsaid is not None:
            error_console().print(f"{unsaid}.", markup=False, soft_wrap=True)
    elif out is None:
        folder = export_into(summary, chosen, study / "exports")
    else:
        folder = export_trial(summary, chosen, out)
    print(folder)
    name = f"trial {chosen.number}" if which is None else f"trial {chosen.number} ({which.words})"
    error_console().print(f"Exported {name} to {folder}", markup=False, soft_wrap=True)


def _tool(name: str) -> Tool | None:
    """The tool that reads the export; None for a folder of ours.

    Raises:
        ConfigError: there is no such format.
    """
    from autotune.errors import ConfigError
    from autotune.foreign.tool import Tool

    if name == _OWN_FORMAT:
        return None
    if name not in list(Tool):
        raise ConfigError(f"--format {name!r}: choose from {', '.join((_OWN_FORMAT, *Tool))}")
    return Tool(name)


def _pick(name: str) -> Goal:
    from autotune.errors import ConfigError
    from autotune.question.goal import PICKS, Goal

    if name not in PICKS:
        raise ConfigError(f"--pick {name!r}: choose from {', '.join(PICKS)}")
    return Goal(name)


def _picked(summary: StudySummary, which: Goal) -> Trial:
    from autotune.errors import ConfigError

    if not summary.front:
        raise ConfigError(f"{summary.name}: no trial fits; there is nothing to export")
    picked = summary.picks.get(which)
    if picked is None:
        raise ConfigError(
            f"--pick {which}: the trials of {summary.name} have no energy; choose from "
            f"{', '.join(summary.picks)}"
        )
    return picked


def _measured(summary: StudySummary, number: int | None) -> Trial:
    from autotune.errors import ConfigError

    for trial in summary.trials:
        if trial.number == number and trial.measurement is not None:
            return trial
    measured = [str(t.number) for t in summary.trials if t.measurement is not None]
    raise ConfigError(
        f"--trial {number}: the study has no measured trial with this number; "
        + (f"choose from {', '.join(measured)}" if measured else "no trial was measured")
    )
