from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from autotune.question.workload import Workload
from autotune.space.strategy import Strategy
from autotune.trials.trial import Incumbent, TrialSpec
from autotune.worker.timed_steps import TimedSteps, WarmUp

GIB = 2**30


@pytest.fixture
def spec(tiny: Workload) -> TrialSpec:
    return TrialSpec(workload=tiny, strategy=Strategy(), num_ranks=2)


def timed(spec: TrialSpec, *times_s: float, **fields: Any) -> TimedSteps:
    steps = TimedSteps(replace(spec, **fields))
    for seconds in times_s:
        steps.add(seconds)
    return steps


@pytest.mark.parametrize(
    ("times_s", "are_enough"),
    [
        ((), False),
        ((0.1,), False),
        # Two: half-width 9 scatters.
        ((0.1, 0.1003), True),
        ((0.1, 0.101), False),
        # Three: 2.5 scatters.
        ((0.1, 0.101, 0.1005), True),
        ((0.1, 0.103, 0.101), False),
        ((0.1, 0.103, 0.101, 0.102, 0.1005, 0.1), True),
    ],
)
def test_steps_are_enough_once_the_interval_of_their_mean_is_narrow(
    spec: TrialSpec, times_s: tuple[float, ...], are_enough: bool
) -> None:
    assert timed(spec, *times_s).are_enough is are_enough


def test_long_steps_are_enough_after_two_however_they_scatter(spec: TrialSpec) -> None:
    assert not timed(spec, 5.0, timed_s=4.0).are_enough
    assert timed(spec, 5.0, 9.0, timed_s=4.0).are_enough


def test_no_more_steps_are_timed_than_asked_for(spec: TrialSpec) -> None:
    assert timed(spec, 0.1, 0.2, 0.1, timed_steps=3).are_enough


def test_an_exact_number_of_steps_can_be_asked_for(spec: TrialSpec) -> None:
    exact = timed(spec, 0.1, 0.101, timed_steps=3, relative_half_width=0.0)
    assert not exact.are_enough


def defeat(spec: TrialSpec, *times_s: float, rival_gib: float = 2.0) -> str | None:
    """Against a incumbent with steps of 0.1 s, at a peak of 2 GiB."""
    incumbent = Incumbent(
        number=3,
        tokens_per_second=spec.workload.tokens_per_step / 0.1,
        peak_memory_bytes=int(rival_gib * GIB),
    )
    return timed(spec, *times_s, incumbents=(incumbent,)).defeat(2 * GIB)


def test_a_slower_trial_in_no_less_memory_is_beaten_and_told_by_whom(spec: TrialSpec) -> None:
    reason = defeat(spec, 0.15, 0.151)
    assert reason is not None
    assert "trial 3" in reason


def test_one_step_beats_nobody_but_by_more_than_first_steps_differ(spec: TrialSpec) -> None:
    assert defeat(spec, 0.149) is None
    assert defeat(spec, 0.151) is not None


def test_a_trial_whose_interval_reaches_the_rival_goes_on(spec: TrialSpec) -> None:
    assert defeat(spec, 0.11, 0.112) is None
    assert defeat(spec, 0.11, 0.112, 0.111) is not None


def test_a_trial_in_less_memory_so_far_is_not_beaten(spec: TrialSpec) -> None:
    assert defeat(spec, 0.5, 0.5, rival_gib=2.1) is None


def test_a_faster_trial_is_not_beaten(spec: TrialSpec) -> None:
    assert defeat(spec, 0.09, 0.09) is None


def test_before_the_first_timed_step_nothing_is_known(spec: TrialSpec) -> None:
    assert defeat(spec) is None


def _timed_indices(num_steps: int, compiling: set[int], num_all: int = 14) -> list[int]:
    warm_up = WarmUp(num_steps)
    return [i for i in range(num_all) if not warm_up.covers(i, has_compiled=i in compiling)]


def test_without_compilation_the_first_steps_warm_up() -> None:
    assert _timed_indices(2, set(), 5) == [2, 3, 4]


def test_compilation_in_the_first_step_of_two_costs_no_further_step() -> None:
    assert _timed_indices(2, {0}, 5) == [2, 3, 4]


def test_the_step_after_a_compilation_warms_up_too() -> None:
    assert _timed_indices(1, {0}, 5) == [2, 3, 4]
    assert _timed_indices(2, {0, 1}, 6) == [3, 4, 5]


def test_a_late_compilation_is_not_timed_indices() -> None:
    assert _timed_indices(1, {3}, 7) == [1, 2, 5, 6]


def test_a_model_that_compiles_forever_is_timed_in_the_end() -> None:
    assert _timed_indices(2, set(range(14))) == [10, 11, 12, 13]
