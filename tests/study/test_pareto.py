from __future__ import annotations

import random

import numpy as np
import pytest
from sample_study import complete, failed, pruned

from autotune.question.goal import FRONT_PICKS, Goal
from autotune.study.pareto import front_of, front_rows, incumbents, pareto_front, pick
from autotune.trials.trial import FailureKind, Trial


def numbers(trials: list[Trial]) -> list[int]:
    return [trial.number for trial in trials]


def test_front_is_sorted_by_throughput_and_leaves_out_what_is_beaten_in_both() -> None:
    trials = [complete(0, 100, 10), complete(1, 300, 40), complete(2, 200, 50)]
    assert numbers(pareto_front(trials)) == [1, 0]


def test_front_leaves_out_more_memory_at_equal_throughput() -> None:
    assert numbers(pareto_front([complete(0, 100, 20), complete(1, 100, 10)])) == [1]


def test_front_leaves_out_less_throughput_at_equal_memory() -> None:
    assert numbers(pareto_front([complete(0, 100, 10), complete(1, 200, 10)])) == [1]


def test_equal_trials_stand_on_the_front_once_and_the_first_stays() -> None:
    assert numbers(pareto_front([complete(1, 100, 10), complete(0, 100, 10)])) == [0]


def test_only_trials_that_fit_are_on_the_front() -> None:
    trials = [
        complete(0, 900, 78),
        complete(1, 800, 40, num_alloc_retries=1),
        failed(2, FailureKind.CRASH),
        pruned(3, "does not fit"),
        complete(4, 100, 10),
    ]
    assert numbers(pareto_front(trials)) == [4]


def test_front_does_not_depend_on_the_order_of_trials() -> None:
    trials = [complete(n, 100 + 7 * n % 50, 10 + 5 * n % 30) for n in range(20)]
    assert pareto_front(trials) == pareto_front(trials[::-1])


def test_rows_are_on_the_front_as_candidates_are() -> None:
    draw = random.Random(0)
    fast = [draw.randrange(60) for _ in range(500)]
    values = [(float(speed), speed + draw.randrange(40)) for speed in fast]
    speeds, sizes = (np.array(column) for column in zip(*values, strict=True))
    expected = front_of(range(500), lambda row: values[row])
    assert front_rows(speeds, sizes).tolist() == expected
    assert len(expected) > 3
    assert front_rows(speeds[:0], sizes[:0]).tolist() == []


def test_picks_of_the_ends_are_the_fastest_and_the_leanest() -> None:
    front = [complete(0, 300, 60), complete(1, 200, 30), complete(2, 100, 10)]
    throughput, memory = pick(front, Goal.THROUGHPUT), pick(front, Goal.MEMORY)
    assert throughput is not None
    assert memory is not None
    assert (throughput.number, memory.number) == (0, 2)


def test_balanced_is_the_trial_farthest_beyond_the_line_between_the_ends() -> None:
    front = [
        complete(0, 300, 60),
        complete(1, 290, 35),
        complete(2, 280, 20),
        complete(3, 100, 10),
    ]
    assert pick(front, Goal.BALANCED) is front[2]


def test_balanced_is_the_fastest_where_no_trial_lies_beyond_the_line() -> None:
    front = [complete(0, 300, 60), complete(1, 110, 50), complete(2, 100, 10)]
    assert pick(front, Goal.BALANCED) is front[0]


@pytest.mark.parametrize("which", FRONT_PICKS)
def test_the_only_trial_of_a_front_is_every_pick(which: Goal) -> None:
    only = complete(0, 100, 10)
    assert pick([only], which) is only


@pytest.mark.parametrize("which", FRONT_PICKS)
def test_an_empty_front_has_no_pick(which: Goal) -> None:
    assert pick([], which) is None


def test_the_rivals_of_a_running_trial_are_the_front_so_far() -> None:
    found = incumbents([complete(0, 100, 10), complete(1, 300, 40), complete(2, 200, 50)])
    assert [(r.number, r.tokens_per_second, r.peak_memory_bytes) for r in found] == [
        # Of two steps that differ by a fifth no more is sure than two thirds.
        (1, pytest.approx(200), 40 * 2**30),
        (0, pytest.approx(100 / 1.5), 10 * 2**30),
    ]
