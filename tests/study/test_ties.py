"""Which trials may be as fast as others, and which ended early against what is no more so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from sample_study import complete, pruned, summary

from autotune.answer.report_document import report_json
from autotune.space.strategy import Strategy
from autotune.study.confirmation import comparisons
from autotune.study.pareto import incumbents
from autotune.study.reruns import reopened
from autotune.study.ties import tied_with, ties
from autotune.trials.trial import Trial, TrialState

STEADY = (1.0, 1.001, 0.999, 1.0)


def measured(
    number: int,
    speed: float,
    gib: float,
    *,
    steps: Sequence[float] = STEADY,
    disturbance: float = 0.0,
    again: Sequence[float] = (),
) -> Trial:
    trial = complete(number, speed, gib, strategy=Strategy(micro_batch_size=number + 1))
    assert trial.measurement is not None
    measurement = replace(trial.measurement, step_times_s=tuple(steps), disturbance=disturbance)
    runs = tuple(replace(measurement, tokens_per_second=one) for one in again)
    return replace(trial, measurement=measurement, confirmations=runs)


def ended_early(
    number: int, speed: float, gib: float, *, steps: Sequence[float] = STEADY
) -> Trial:
    trial = measured(number, speed, gib, steps=steps)
    return replace(trial, state=TrialState.PRUNED, reason="beaten")


def told(front: Sequence[Trial]) -> dict[int, list[int]]:
    found = ties(front, comparisons(front))
    return {tie.fastest.number: [other.number for other in tie.others] for tie in found}


def test_each_trial_of_a_chain_is_a_tie_with_its_neighbours_alone() -> None:
    noisy = (1.0, 1.02, 0.98, 1.0)
    front = [
        measured(number, speed, 50 - number, steps=noisy)
        for number, speed in enumerate((1000, 960, 920))
    ]
    found = {t.number: [o.number for o in tied_with(t, front)] for t in front}
    assert found == {0: [1], 1: [0, 2], 2: [1]}


def test_picks_name_the_trials_that_they_are_a_tie_with() -> None:
    noisy = (1.0, 1.02, 0.98, 1.0)
    fastest, least = measured(0, 1000, 50, steps=noisy), measured(1, 990, 20, steps=noisy)
    document = report_json(summary(fastest, least, measured(2, 100, 5)))
    assert document["pick_ties"]["throughput"] == [1]
    assert document["pick_ties"]["memory"] == []


def test_trials_whose_intervals_overlap_are_a_tie() -> None:
    noisy = (1.0, 1.05, 0.95, 1.02)
    front = [
        measured(0, 1000, 50, steps=noisy),
        measured(1, 980, 40, steps=noisy),
        measured(2, 700, 30),
        measured(3, 699.9, 20),
        measured(4, 100, 10),
    ]
    assert told(front) == {0: [1], 2: [3]}


def test_runs_in_turns_decide_where_there_are_any() -> None:
    # Both are faster and slower by turns of the machine, and the first always faster.
    front = [
        measured(0, 1000, 50, again=[1000, 800, 900, 1100]),
        measured(1, 960, 40, again=[960, 770, 865, 1060]),
    ]
    assert told(front) == {}
    assert told([measured(0, 1000, 50), measured(1, 960, 40)]) == {}


def test_other_work_on_the_machine_widens_intervals_into_ties() -> None:
    assert told([measured(0, 1000, 50), measured(1, 800, 40)]) == {}
    busy = [measured(0, 1000, 50, disturbance=0.3), measured(1, 800, 40)]
    assert told(busy) == {0: [1]}
    assert busy[0].throughput is not None
    assert busy[0].throughput.half_width == pytest.approx(300, rel=0.01)


def test_a_report_says_ties_and_that_the_machine_was_busy() -> None:
    study = summary(measured(0, 1000, 50, disturbance=0.3), measured(1, 800, 40))
    assert report_json(study)["ties"] == [{"trial": 0, "with": [1]}]


@pytest.mark.parametrize("again", [(), (1000.0, 1010.0, 990.0)])
def test_a_trial_is_given_up_against_what_its_rival_is_sure_to_reach(
    again: tuple[float, ...],
) -> None:
    [incumbent] = incumbents([measured(0, 1000, 50, again=again)])
    assert 950 < incumbent.tokens_per_second < 980


def test_what_ended_early_is_open_again_where_confirming_runs_were_slower() -> None:
    lucky, ended = measured(0, 1000, 50), ended_early(1, 900, 60)
    assert reopened([lucky, ended]) == []
    assert reopened(
        [replace(lucky, confirmations=measured(0, 0, 0, again=[850]).confirmations), ended]
    ) == [ended]
    # Once is enough, and what was never launched has nothing to be run again for.
    again = replace(ended, number=2, state=TrialState.COMPLETE)
    assert reopened([ended, again]) == []
    assert reopened([pruned(3, "too large")]) == []


def test_what_needs_less_memory_than_all_that_is_faster_is_open_again() -> None:
    leaner = ended_early(1, 500, 40)
    assert reopened([measured(0, 1000, 50), leaner]) == [leaner]
