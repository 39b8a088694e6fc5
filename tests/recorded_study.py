"""A study's folder with trials that nobody ran: what the command line does with one, at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from command_line import autotune_here
from sample_study import complete, prediction

from autotune.machine.software import detect_software
from autotune.space.space_file import load_search_space
from autotune.study.folder import StudyFolder
from autotune.study.stored import open_record
from autotune.trials.trial import Outcome

__all__ = ["SEARCH", "record_study"]

SEARCH = ("search", "--model", "tiny", "--out", "study", "--budget", "1s")
"""Runs no trial: the budget ends before the libraries are loaded."""


def record_study(parent: Path, figures: list[tuple[float, float]]) -> Path:
    """Make a study below a folder, with a trial for each of the figures.

    Args:
        parent: the study is its folder `study`.
        figures: tokens/s and GiB of each trial.
    """
    assert autotune_here(*SEARCH, folder=parent).returncode == 1
    folder = StudyFolder(parent / "study")
    question = folder.read_question()
    space = load_search_space(
        question.space_name, question.workload, question.hardware, detect_software()
    )
    record = open_record(folder, space, question, None)
    for row, (tokens_per_second, gib) in enumerate(figures):
        measurement = complete(0, tokens_per_second, gib).measurement
        assert measurement is not None
        running = record.start(space.table.strategy(row), prediction(gib))
        record.finish(running, Outcome(measurement=replace(measurement, losses=(1.0,))))
    record.close()
    return parent / "study"
