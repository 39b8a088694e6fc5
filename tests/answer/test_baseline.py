"""What a user has, compared with the best: the line of a report, and its JSON."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sample_study import complete, failed, pruned, summary

from autotune.answer.baseline import baseline_json, baseline_words
from autotune.errors import ConfigError
from autotune.space.strategy import Strategy
from autotune.study.baseline import Baseline
from autotune.study.folder import StudyFolder
from autotune.study.summary import StudySummary
from autotune.trials.trial import FailureKind, Trial

OWN = Strategy(zero_stage=3, micro_batch_size=1)
BEST = Strategy(zero_stage=2, micro_batch_size=8)
BASELINE = Baseline(source="axolotl.yaml", strategy=OWN)


def told(*trials: Trial, baseline: Baseline = BASELINE) -> StudySummary:
    return replace(summary(*trials), baseline=baseline)


def test_a_study_without_a_baseline_says_nothing_of_it() -> None:
    study = summary(complete(0, 1000.0, 10.0))
    assert baseline_words(study) is None
    assert baseline_json(study) is None


def test_the_best_is_compared_with_it() -> None:
    own, best = complete(0, 1000.0, 30.0, strategy=OWN), complete(1, 1900.0, 18.0, strategy=BEST)
    study = told(own, best)
    assert baseline_words(study) == (
        "Baseline (axolotl.yaml): trial 0, Z3 mb1: 1,000 tokens/s in 30.0 GiB. "
        "Trial 1 is 1.90 × yours, 12.0 GiB less."
    )
    record = baseline_json(study)
    assert record is not None
    assert (record["trial"], record["speedup"]) == (0, pytest.approx(1.9))
    assert record["bytes_saved"] == 12 * 2**30
    assert record["strategy"] == OWN.to_dict()


def test_a_best_that_needs_more_memory_says_so() -> None:
    own, best = complete(0, 1000.0, 30.0, strategy=OWN), complete(1, 1100.0, 31.5, strategy=BEST)
    assert str(baseline_words(told(own, best))).endswith("1.10 × yours, 1.50 GiB more.")


def test_a_baseline_that_is_the_best_is_praised() -> None:
    own, other = complete(0, 1000.0, 30.0, strategy=OWN), complete(1, 900.0, 31.5, strategy=BEST)
    assert "No trial is better for --objective front." in str(baseline_words(told(own, other)))


@pytest.mark.parametrize(
    ("trial", "words"),
    [
        (failed(0, FailureKind.DEVICE_OUT_OF_MEMORY), "not measured: device out of memory."),
        (pruned(0, "it needs 99 GiB"), "not measured: it needs 99 GiB."),
    ],
)
def test_a_baseline_without_a_measurement_says_why(trial: Trial, words: str) -> None:
    own = replace(trial, strategy=OWN)
    study = told(own, complete(1, 1900.0, 18.0, strategy=BEST))
    assert str(baseline_words(study)).endswith(words)
    record = baseline_json(study)
    assert record is not None
    assert record["speedup"] is None


def test_a_baseline_that_cannot_run_here_says_why() -> None:
    none = Baseline(source="x.json", strategy=None, problem="it needs a GPU")
    study = told(complete(0, 1000.0, 10.0), baseline=none)
    assert baseline_words(study) == "Baseline (x.json): cannot run here: it needs a GPU."


def test_a_baseline_that_has_not_run_says_so() -> None:
    assert "was not run yet" in str(baseline_words(told(complete(1, 1.0, 1.0, strategy=BEST))))


def test_a_study_keeps_its_baseline(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    folder.write_environment({"baseline": BASELINE.to_dict()})
    assert Baseline.from_dict(folder.read_environment()["baseline"]) == BASELINE


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"source": 3},
        {"source": "x", "strategy": {"zero_stage": 9}},
        {"source": "x", "strategy": []},
        {"source": "x\x1b[31m", "strategy": None},
    ],
)
def test_what_is_no_baseline_is_refused(record: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Baseline.from_dict(record)
