"""Which measurements of an earlier study answer a question too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sample_study import HARDWARE, SOFTWARE, WORKLOAD, complete, failed, pruned, summary

from autotune.question.command import CommandKind, TrainingCommand
from autotune.question.own_training import OwnTraining
from autotune.question.question import Question
from autotune.question.workload import load_model_shape
from autotune.space.search_space import Knob, SearchSpace
from autotune.space.strategy import Strategy
from autotune.study.reuse import difference, reusable_trials
from autotune.study.summary import StudySummary
from autotune.trials.trial import FailureKind

QUESTION = Question(
    workload=WORKLOAD, hardware=HARDWARE, space_name="default", space_text="", headroom=0.2, seed=7
)
SPACE = SearchSpace(
    name="test",
    knobs=(Knob(name="micro_batch_size", values=(1, 2, 4), when={}),),
    workload=WORKLOAD,
    hardware=HARDWARE,
    software=SOFTWARE,
)
VERSIONS = {"torch": "2.13.0"}
STUDY = summary()


def strategy(size: int) -> Strategy:
    found = SPACE.strategy({"micro_batch_size": size})
    assert found is not None
    return found


def test_another_seed_headroom_space_or_tuner_makes_no_difference() -> None:
    assert difference(STUDY, QUESTION, VERSIONS | {"optuna": "6.0"}) is None


@pytest.mark.parametrize(
    ("study", "words"),
    [
        (
            replace(STUDY, workload=replace(WORKLOAD, model=load_model_shape("3B"))),
            "it measured 3B",
        ),
        (
            replace(STUDY, workload=replace(WORKLOAD, seq_len=512)),
            "it measured full, 512 tokens per sample, 64 samples per step",
        ),
        (
            replace(STUDY, hardware=replace(HARDWARE, num_devices=4)),
            "it ran on 4 x H100-80GB; this machine is 2 x H100-80GB",
        ),
        (
            replace(STUDY, versions={"torch": "2.12.0"}),
            "it ran with torch 2.12.0; now it is 2.13.0",
        ),
        (replace(STUDY, versions={}), "it ran with torch not installed; now it is 2.13.0"),
    ],
)
def test_what_makes_a_difference_is_named(study: StudySummary, words: str) -> None:
    assert difference(study, QUESTION, VERSIONS) == words


def test_a_command_is_answered_by_the_same_command_alone() -> None:
    command = TrainingCommand(kind=CommandKind.FILE, target="a.py", folder="/f")
    own = OwnTraining(command=command, is_predictable=True)
    other = replace(own, command=replace(command, arguments=("--lr", "1")))
    asked = replace(QUESTION, own_training=own)
    assert difference(replace(STUDY, own_training=own), asked, VERSIONS) is None
    for study in (STUDY, replace(STUDY, own_training=other)):
        assert "command" in (difference(study, asked, VERSIONS) or "")
    assert "command" in (difference(replace(STUDY, own_training=own), QUESTION, VERSIONS) or "")


def test_a_model_may_have_been_named_otherwise(tmp_path: Path) -> None:
    shape = replace(WORKLOAD.model, name="elsewhere", source=str(tmp_path))
    assert (
        difference(replace(STUDY, workload=replace(WORKLOAD, model=shape)), QUESTION, VERSIONS)
        is None
    )


def test_the_last_measurement_of_each_strategy_of_the_space_is_reusable() -> None:
    trials = [
        complete(0, 1000.0, 10.0, strategy=strategy(2)),
        complete(1, 1100.0, 10.0, strategy=strategy(2)),
        complete(2, 900.0, 10.0, strategy=strategy(4)),
        complete(3, 900.0, 10.0, strategy=replace(strategy(4), zero_stage=3)),
        failed(4, FailureKind.DEVICE_OUT_OF_MEMORY),
        pruned(5, "too large"),
    ]
    found = reusable_trials(summary(*trials), SPACE)
    assert [trial.number for trial in found] == [1, 2]
