"""What a search does before its first trial, and how often."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from command_line import autotune_here
from recorded_study import SEARCH

from autotune.trials.prediction_table import PredictionTable


def test_a_search_predicts_its_space_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large space that takes seconds, before anything is heard of the search."""
    joined, sizes = PredictionTable.joined, list[int]()

    def noted(parts: Sequence[PredictionTable]) -> PredictionTable:
        sizes.append(sum(map(len, parts)))
        return joined(parts)

    monkeypatch.setattr(PredictionTable, "joined", noted)
    monkeypatch.setattr("autotune.space.search_space.MOST_STRATEGIES", 1)
    # The sampler asks about the best of a large space once more.
    monkeypatch.setattr("autotune.samplers.predicted._MOST_ROWS", 10)
    ran = autotune_here(*SEARCH, folder=tmp_path)
    assert sizes.count(max(sizes)) == 1
    assert ran.stderr.startswith(f"Ranking {max(sizes):,} strategies")
