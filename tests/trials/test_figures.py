"""Figures of trials: as if all were read each time, but each is read once."""

from __future__ import annotations

import random
from dataclasses import replace

from autotune.space.strategy import Strategy
from autotune.trials.figures import TrialFigures
from autotune.trials.trial import Trial, TrialState


def test_each_trial_is_read_once_until_another_takes_its_place() -> None:
    read: list[int] = []

    def figures_of(trial: Trial) -> tuple[float, float]:
        read.append(trial.number)
        return trial.number, trial.duration_s

    figures, trials, draw = TrialFigures(figures_of, width=2), list[Trial](), random.Random(0)
    for number in range(100):
        trials.append(Trial(number=number, strategy=Strategy(), state=TrialState.RUNNING))
        changed = draw.randrange(len(trials))
        trials[changed] = replace(trials[changed], duration_s=draw.random())
        read.clear()
        found = figures.of(list(trials))

        assert read == list(dict.fromkeys((changed, number)))
        assert found.tolist() == [[trial.number, trial.duration_s] for trial in trials]


def test_what_was_put_off_for_one_question_is_forgotten_at_the_next() -> None:
    figures = TrialFigures(lambda trial: (trial.number,), width=1)
    first, put_off = (
        Trial(number=number, strategy=Strategy(), state=TrialState.RUNNING) for number in (0, -1)
    )

    assert figures.of([first, put_off])[:, 0].tolist() == [0, -1]
    assert figures.of([first])[:, 0].tolist() == [0]
    assert figures.of([put_off])[:, 0].tolist() == [-1]
    assert figures.of([]).shape == (0, 1)
