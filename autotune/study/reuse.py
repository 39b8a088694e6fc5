"""Measurements of an earlier study that answer a question too, and need not be launched.

The same model, trained in the same way on the same kind of devices with the same software. Spaces,
headroom, seeds and budgets may differ. Does not know where studies are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from autotune.question.command import TrainingCommand
from autotune.question.question import Question
from autotune.space.search_space import SearchSpace
from autotune.study.summary import StudySummary
from autotune.trials.trial import Trial, TrialState

__all__ = ["difference", "reusable_trials"]

_IDLE = frozenset(("optuna", "ray", "nvidia-ml-py"))
"""Packages that take no part in a training step."""


def difference(study: StudySummary, question: Question, versions: Mapping[str, str]) -> str | None:
    """Why the measurements of a study do not answer a question, in words.

    Args:
        study: the earlier one.
        question: what is asked now.
        versions: what is installed now.
    """
    ours, theirs = question.workload, study.workload
    # Folders and identifiers may name the same model differently.
    if replace(theirs.model, name="", source="") != replace(ours.model, name="", source=""):
        return f"it measured {theirs.model.name}"
    if theirs.lengths != ours.lengths:
        return f"it measured {theirs.lengths or 'samples of one length'}"
    if replace(theirs, model=ours.model) != ours:
        return (
            f"it measured {theirs.method}, {theirs.seq_len} tokens per sample, "
            f"{theirs.global_batch_size} samples per step"
        )
    if str(study.hardware) != str(question.hardware):
        return f"it ran on {study.hardware}; this machine is {question.hardware}"
    if _command_of(study) != _command_of(question):
        return "it trained by another command" if study.own_training else "it ran no command"
    if study.hardware.supports_bf16 != question.hardware.supports_bf16:
        ran = "computes" if study.hardware.supports_bf16 else "does not compute"
        return f"it ran on a device that {ran} bf16, unlike this one"
    for package in sorted({*versions, *study.versions} - _IDLE):
        then, now = study.versions.get(package), versions.get(package)
        if then != now:
            there, here = then or "not installed", now or "not installed"
            return f"it ran with {package} {there}; now it is {here}"
    return None


def _command_of(asked: StudySummary | Question) -> TrainingCommand | None:
    return None if asked.own_training is None else asked.own_training.command


def reusable_trials(study: StudySummary, space: SearchSpace) -> list[Trial]:
    """What a study measured of a space's strategies; of each the last."""
    found = {
        trial.strategy: trial
        for trial in study.trials
        if trial.state is TrialState.COMPLETE
        and trial.measurement is not None
        and space.table.find(trial.strategy) is not None
    }
    return list(found.values())
