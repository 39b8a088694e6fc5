from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from sample_study import complete

from autotune.space.strategy import Strategy
from autotune.study.confirmation import (
    LEAST_RUNS,
    Confirmer,
    Verdict,
    candidates,
    comparisons,
    next_to_confirm,
)
from autotune.trials.trial import Failure, FailureKind, Trial


def numbers(trials: Sequence[Trial]) -> list[int]:
    return [trial.number for trial in trials]


def run_again(trial: Trial, *speeds: float) -> Trial:
    """The trial with one later run at each of these tokens/s."""
    assert trial.measurement is not None
    runs = [replace(trial.measurement, tokens_per_second=speed) for speed in speeds]
    return replace(trial, confirmations=(*trial.confirmations, *runs))


def trial(number: int, tokens_per_second: float, gib: float, *speeds: float) -> Trial:
    made = complete(number, tokens_per_second, gib, strategy=Strategy(micro_batch_size=number + 1))
    return run_again(made, *speeds)


def test_candidates_are_the_fastest_what_is_close_to_it_and_the_other_picks() -> None:
    trials = [
        trial(0, 1000, 50),
        trial(1, 980, 60),  # close, though beaten
        trial(2, 900, 55),  # beaten, and not close
        trial(3, 500, 20),  # the balanced one
        trial(4, 100, 10),  # the leanest
        trial(5, 2000, 79),  # does not fit
    ]
    assert numbers(candidates(trials, 9)) == [0, 1, 3, 4]
    assert numbers(candidates(trials, 2)) == [0, 1]
    assert candidates(trials, 0) == []
    assert candidates([], 3) == []


def test_runs_take_turns() -> None:
    speeds = {0: 1000.0, 1: 900.0}
    trials = [trial(number, speed, 10 + number) for number, speed in speeds.items()]
    turns = []
    for _ in range(20):
        turn = next_to_confirm(trials)
        if turn is None:
            break
        turns.append(turn.number)
        trials = [run_again(t, speeds[t.number]) if t is turn else t for t in trials]
    assert turns == [0, 1] * LEAST_RUNS


def test_an_order_beyond_the_noise_is_told() -> None:
    [found] = comparisons([trial(0, 1, 1, 1000, 1010, 990), trial(1, 1, 1, 1100, 1115, 1090)])
    assert (found.first.number, found.second.number) == (1, 0)
    assert found.verdict is Verdict.FASTER
    assert found.difference.mean == pytest.approx(0.10, abs=0.01)
    assert next_to_confirm([found.first, found.second]) is None


def test_what_differs_by_less_than_a_percent_for_sure_is_a_tie() -> None:
    [found] = comparisons([trial(0, 1, 1, 1000, 1010, 990), trial(1, 1, 1, 1002, 1008, 991)])
    assert found.verdict is Verdict.TIE


def test_what_the_noise_hides_is_run_again_and_a_tie_in_the_end() -> None:
    pair = [trial(0, 1, 1, 1000, 900, 950), trial(1, 1, 1, 930, 960, 1000)]
    [found] = comparisons(pair)
    assert found.verdict is Verdict.OPEN
    turn = next_to_confirm(pair)
    assert turn is pair[0]
    pair = [run_again(pair[0], 1000, 900, 950), run_again(pair[1], 930, 960, 1000)]
    [found] = comparisons(pair)
    assert found.verdict is Verdict.TIE
    assert next_to_confirm(pair) is None


def test_drift_that_both_share_does_not_hide_their_order() -> None:
    # The machine slows down by a fifth, and one is 1 % faster all the time.
    [found] = comparisons(
        [trial(0, 1, 1, 1000, 900, 800, 950), trial(1, 1, 1, 1011, 909, 807, 961)]
    )
    assert found.verdict is Verdict.FASTER


def test_once_confirmed_the_later_runs_count_and_not_the_lucky_first_one() -> None:
    lucky = trial(0, 2000, 10, 1000, 1010, 990)
    assert lucky.tokens_per_second == 1000
    assert lucky.throughput is not None
    # Student's quantile of three: 4.303.
    assert lucky.throughput.half_width == pytest.approx(4.303 * 10 / 3**0.5, rel=1e-3)


def test_a_run_that_needs_too_much_or_fails_takes_the_trial_off_the_candidates() -> None:
    good = trial(0, 1000, 50)
    assert good.measurement is not None
    greedy = replace(good.measurement, peak_device_bytes=77 * 2**30)
    assert not replace(good, confirmations=(greedy,)).fits
    assert candidates([replace(good, has_failed_again=True)], 3) == []


def test_a_fifth_of_the_time_is_kept_at_most_and_less_where_runs_are_short() -> None:
    # 3.8 s beside its steps and 6 s of steps, three times and a tenth: 32.34 s each.
    trials = [trial(0, 1000, 50), trial(1, 990, 40)]
    assert Confirmer(3).kept_s(trials, 1000.0) == pytest.approx(64.68)
    assert Confirmer(3).kept_s(trials, 200.0) == pytest.approx(32.34)
    assert Confirmer(3).kept_s(trials, 100.0) == 0.0
    assert Confirmer(3).kept_s([], 1000.0) == 0.0
    assert Confirmer(0).kept_s(trials, 1000.0) == 0.0


def test_a_run_is_expected_to_take_as_long_as_the_last_one() -> None:
    again = run_again(trial(0, 1000, 50), 1000.0)
    # 3.8 s and the 2.2 s of steps that it took, two more times.
    assert Confirmer(3).kept_s([again], 1000.0) == pytest.approx(1.1 * 12.0)


def test_a_reused_trial_that_took_no_time_here_is_expected_to_take_some() -> None:
    reused = trial(0, 1000, 50)
    assert reused.measurement is not None
    measurement = replace(reused.measurement, setup_time_s=1.5)
    reused = replace(reused, duration_s=0.0, measurement=measurement)
    assert Confirmer(3).kept_s([reused], 1000.0) == pytest.approx(1.1 * 3 * 7.5)


def test_what_is_kept_is_a_share_of_the_whole_and_not_of_what_is_left() -> None:
    confirmer = Confirmer(1)
    confirmer.kept_s([], 200.0)
    assert confirmer.kept_s([trial(0, 1000, 50)], 30.0) == pytest.approx(32.34)


def test_runs_a_little_longer_than_expected_still_leave_time_for_the_last() -> None:
    best = trial(0, 1000, 50)
    assert best.measurement is not None
    run = replace(best.measurement, step_times_s=(2.1, 2.1, 2.1))
    confirmer = Confirmer(1)
    remaining_s = confirmer.kept_s([best], 1000.0)
    for _ in range(3):
        assert confirmer.next([best], remaining_s) is not None
        best = replace(best, confirmations=(*best.confirmations, run))
        # 6 s of steps were expected, and no time between the runs.
        remaining_s -= 3.8 + 6.3 + 0.3


def test_nothing_is_run_again_in_less_time_than_the_least_number_of_runs() -> None:
    trials = [trial(0, 1000, 50), trial(1, 990, 40)]
    confirmer = Confirmer(2)
    assert confirmer.next(trials, 29.0) is None
    assert not confirmer.has_begun
    turn = confirmer.next(trials, 30.0)
    assert turn is trials[0]
    assert confirmer.has_begun


def test_a_machinery_that_breaks_again_and_again_ends_the_confirmation() -> None:
    trials = [trial(0, 1000, 50)]
    confirmer = Confirmer(1)
    broken = Failure(kind=FailureKind.LOST_NODE, message="planted")
    for _ in range(3):
        assert confirmer.next(trials, 1000.0) is not None
        confirmer.ended(replace(trials[0], measurement=None, failure=broken))
    assert confirmer.next(trials, 1000.0) is None
