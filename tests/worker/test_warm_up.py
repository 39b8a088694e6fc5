"""A step that compiles something is never timed, nor the one after it."""

from __future__ import annotations

from autotune.worker.warm_up import WarmUp


def _timed(num_steps: int, compiling: set[int], num_all: int = 14) -> list[int]:
    warm_up = WarmUp(num_steps)
    return [i for i in range(num_all) if not warm_up.covers(i, has_compiled=i in compiling)]


def test_without_compilation_the_first_steps_warm_up() -> None:
    assert _timed(2, set(), 5) == [2, 3, 4]


def test_compilation_in_the_first_step_of_two_costs_no_further_step() -> None:
    assert _timed(2, {0}, 5) == [2, 3, 4]


def test_the_step_after_a_compilation_warms_up_too() -> None:
    assert _timed(1, {0}, 5) == [2, 3, 4]
    assert _timed(2, {0, 1}, 6) == [3, 4, 5]


def test_a_late_compilation_is_not_timed() -> None:
    assert _timed(1, {3}, 7) == [1, 2, 5, 6]


def test_a_model_that_compiles_forever_is_timed_in_the_end() -> None:
    assert _timed(2, set(range(14))) == [10, 11, 12, 13]
