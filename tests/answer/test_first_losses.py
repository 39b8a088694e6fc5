"""What a report says of trials of the user's own command."""

from __future__ import annotations

from dataclasses import replace

from sample_study import complete, summary

from autotune.answer.own_command import own_command_words
from autotune.question.command import CommandKind, TrainingCommand
from autotune.question.own_training import OwnTraining
from autotune.space.strategy import Strategy
from autotune.study.baseline import Baseline
from autotune.study.summary import StudySummary
from autotune.trials.trial import Trial

COMMAND = TrainingCommand(kind=CommandKind.FILE, target="train.py", folder="/own")
OWN = Strategy(zero_stage=2, micro_batch_size=1)


def trial(number: int, loss: float, micro_batch_size: int, share_run: float = 1.0) -> Trial:
    strategy = Strategy(zero_stage=2, micro_batch_size=micro_batch_size)
    made = complete(number, 1000.0, 10.0, strategy=strategy)
    assert made.measurement is not None
    measurement = replace(made.measurement, losses=(loss,), setup_time_s=4.0, share_run=share_run)
    return replace(made, measurement=measurement, duration_s=9.0)


def study(*trials: Trial) -> StudySummary:
    own = OwnTraining(command=COMMAND, is_predictable=True)
    baseline = Baseline(source="your command", strategy=OWN)
    return replace(summary(*trials), own_training=own, baseline=baseline)


def test_a_study_without_a_command_says_nothing() -> None:
    assert not list(own_command_words(summary(trial(0, 6.0, 1))))


def test_the_time_to_the_first_step_and_equal_losses_are_said() -> None:
    start, losses = own_command_words(study(trial(0, 6.0, 1), trial(1, 6.001, 2)))
    assert "(median 9 s) the command took 4 s to its first step" in start
    assert losses.endswith(
        "6.0000 in your own run, and the same in the other trial with whole steps."
    )


def test_a_neutral_trial_with_another_loss_is_named() -> None:
    # What ran a part of a step saw other samples.
    part = trial(3, 3.0, 8, share_run=0.5)
    *_, losses = own_command_words(study(trial(0, 6.0, 1), trial(2, 3.0, 4), part))
    assert "trial 2 differ" in losses or "trial 2 differs" in losses
    assert "3" not in losses.partition("in your own run")[2].partition("differ")[0]
