"""One word means one trial, whoever is asked: search, report and export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import autotune_here
from recorded_study import SEARCH, record_study

from autotune.question.goal import Goal

_FAST, _LEAN, _KNEE, _SLOW = 0, 1, 2, 3


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fastest, the leanest, the knee, and one behind the front."""
    folder = tmp_path_factory.mktemp("objectives")
    record_study(folder, [(300, 0.6), (100, 0.1), (280, 0.2), (50, 0.7)])
    return folder


@pytest.mark.parametrize(
    ("goal", "number"),
    [
        (Goal.BALANCED, _KNEE),
        (Goal.MEMORY, _LEAN),
        (Goal.THROUGHPUT, _FAST),
        (Goal.FRONT, _FAST),
    ],
)
def test_a_search_exports_the_pick_of_its_objectives_name_and_all_name_it(
    parent: Path, goal: Goal, number: int
) -> None:
    searched = autotune_here(*SEARCH, "--objective", goal, "--json", folder=parent)
    assert searched.returncode == 0, searched.stderr
    told = json.loads(searched.stdout)
    folder = f"study/exports/trial-{number}"
    assert told["best"] == {"trial": number, "pick": goal.pick, "folder": folder}
    assert told["picks"][goal.pick] == number
    words = f"Best for --objective {goal}: trial {number} ({goal.words})"
    assert f"{words}, exported to {folder}" in searched.stderr

    reported = autotune_here("report", "study", "--json", folder=parent)
    assert json.loads(reported.stdout)["best"] == told["best"]
    assert words in " ".join(autotune_here("report", "study", folder=parent).stdout.split())

    exported = autotune_here("export", "study", "--pick", goal.pick, folder=parent)
    assert exported.returncode == 0, exported.stderr
    assert exported.stdout == f"{folder}\n"
    assert f"Exported trial {number} ({goal.words}) to {folder}" in exported.stderr
    record = json.loads((parent / folder / "provenance.json").read_text())
    assert record["trial"]["number"] == number


def test_what_nothing_was_measured_of_is_no_pick(parent: Path) -> None:
    exported = autotune_here("export", "study", "--pick", "energy", folder=parent)
    assert exported.returncode == 2
    assert (
        "--pick energy: the trials of study have no energy; choose from throughput"
        in exported.stderr
    )
    planned = autotune_here(
        *("plan", "--model", "tiny", "--hardware", "1xL4", "--quick", "--pick", "energy"),
        folder=parent,
    )
    assert planned.returncode == 2
    assert "--pick 'energy': choose from throughput, memory, balanced" in planned.stderr
