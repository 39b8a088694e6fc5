"""The predicted sampler against a planted truth that its predictor has wrong in known ways."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from planned import planned
from planted_truth import LIMIT_BYTES, PLAN, outcome, trial

from autotune.knob_values import Offload, Optimizer
from autotune.plan.plan import Plan
from autotune.predictor import AnalyticPredictor
from autotune.question.goal import Goal
from autotune.samplers import PredictedSampler
from autotune.space.strategy import Strategy
from autotune.trials.durations import TrialDurations
from autotune.trials.trial import (
    Failure,
    FailureKind,
    Measurement,
    Outcome,
    Trial,
    TrialState,
)


def make_sampler(
    plan: Plan = PLAN, *, goal: Goal = Goal.BALANCED, min_gain: float = 0.01
) -> PredictedSampler:
    prior = AnalyticPredictor(plan.workload, plan.hardware)
    return PredictedSampler(
        plan.candidates.table, prior, limits=plan.question.limits, goal=goal, min_gain=min_gain
    )


def search(sampler: PredictedSampler, num: int) -> list[Trial]:
    trials: list[Trial] = []
    while len(trials) < num and (strategy := sampler.propose(trials)) is not None:
        trials.append(trial(len(trials), strategy, outcome(strategy)))
    return trials


def measured(trials: list[Trial]) -> list[Measurement]:
    return [t.measurement for t in trials if t.fits and t.measurement is not None]


ALL = [trial(n, each.strategy, outcome(each.strategy)) for n, each in enumerate(PLAN.candidates)]
FASTEST = max(m.tokens_per_second for m in measured(ALL))
LEANEST = min(m.peak_memory_bytes for m in measured(ALL))
THRIFTIEST = min(m.energy_j_per_token or math.inf for m in measured(ALL))


def test_the_fastest_is_found_within_few_trials_although_predictions_are_off() -> None:
    found = measured(search(make_sampler(goal=Goal.THROUGHPUT), 8))
    assert max(m.tokens_per_second for m in found) > 0.99 * FASTEST


def test_the_leanest_is_found_within_few_trials() -> None:
    found = measured(search(make_sampler(goal=Goal.MEMORY), 8))
    assert min(m.peak_memory_bytes for m in found) < 1.02 * LEANEST


def test_the_thriftiest_is_found_within_few_trials() -> None:
    found = measured(search(make_sampler(goal=Goal.ENERGY), 10))
    assert min(m.energy_j_per_token or math.inf for m in found) < 1.03 * THRIFTIEST


def test_balanced_finds_the_fast_end_too() -> None:
    found = measured(search(make_sampler(), 12))
    assert max(m.tokens_per_second for m in found) > 0.99 * FASTEST
    assert min(m.peak_memory_bytes for m in found) < 0.5 * max(m.peak_memory_bytes for m in found)


def test_it_ends_when_nothing_that_is_left_is_likely_to_gain_enough() -> None:
    sampler = make_sampler(goal=Goal.THROUGHPUT)
    trials = search(sampler, len(ALL))
    assert len(trials) < len(ALL) / 2
    assert sampler.end_reason == (
        "no remaining strategy is likely to improve the highest throughput by over 1 % "
        "(--min-gain)"
    )
    assert max(m.tokens_per_second for m in measured(trials)) > 0.99 * FASTEST


def test_a_smaller_gain_is_worth_more_trials() -> None:
    few, many = (search(make_sampler(min_gain=gain), 60) for gain in (0.05, 0.005))
    assert len(few) < len(many)


def test_where_nothing_can_fit_it_ends_before_any_trial() -> None:
    sampler = make_sampler(planned("70B", "1xRTX4090"))
    assert sampler.propose([]) is None
    assert sampler.end_reason == "no remaining strategy is likely to fit"


def test_the_first_trials_tell_techniques_apart() -> None:
    strategies = [t.strategy for t in search(make_sampler(), 3)]
    differing = [
        knob
        for knob, values in PLAN.candidates.table.strategy(0).to_dict().items()
        if len({getattr(s, knob) for s in strategies}) > 1
    ]
    assert len(differing) >= 2


def test_what_runs_is_not_proposed_again_nor_its_like() -> None:
    sampler = make_sampler()
    trials = search(sampler, 5)
    first = sampler.propose(trials)
    assert first is not None
    running = Trial(number=5, strategy=first, state=TrialState.RUNNING)
    second = sampler.propose([*trials, running])
    assert second is not None
    assert second != first


def test_it_does_not_end_while_trials_run() -> None:
    sampler = make_sampler(goal=Goal.THROUGHPUT)
    trials = search(sampler, len(ALL))
    left = next(t.strategy for t in ALL if t.strategy not in {u.strategy for u in trials})
    running = Trial(number=len(trials), strategy=left, state=TrialState.RUNNING)
    assert sampler.propose([*trials, running]) is not None
    assert sampler.end_reason is None
    assert sampler.propose(trials) is None


def test_a_technique_that_crashes_is_soon_left_alone() -> None:
    sampler = make_sampler(goal=Goal.THROUGHPUT)
    trials: list[Trial] = []
    crash = Outcome(failure=Failure(kind=FailureKind.CRASH, message="x"), duration_s=3.0)
    for number in range(12):
        strategy = sampler.propose(trials)
        assert strategy is not None
        ended = crash if strategy.fused_kernels else outcome(strategy)
        trials.append(trial(number, strategy, ended))
    late = [t.strategy.fused_kernels for t in trials[4:]]
    assert sum(late) < len(late) / 2


def test_what_has_to_be_compiled_first_waits_until_it_is_worth_it() -> None:
    wide = planned("1.1B", "1xH100-80GB", global_batch=32, space="full")
    prior = AnalyticPredictor(wide.workload, wide.hardware)

    def first(build_s: float) -> int:
        sampler = PredictedSampler(
            wide.candidates.table,
            prior,
            limits=wide.question.limits,
            goal=Goal.MEMORY,
            durations=TrialDurations(build_s=build_s),
        )
        trials = search(sampler, 12)
        on_host = [t.number for t in trials if t.strategy.offload_optimizer is not Offload.NONE]
        return min(on_host, default=len(trials))

    assert first(600.0) > first(0.0)


def test_of_a_wide_space_what_is_predicted_near_the_front_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = make_sampler(goal=Goal.THROUGHPUT)
    monkeypatch.setattr("autotune.samplers.predicted._MOST_ROWS", 40)
    cut = make_sampler(goal=Goal.THROUGHPUT)
    assert len(search(cut, 3)) == 3
    assert [t.strategy for t in search(cut, 1)] == [t.strategy for t in search(whole, 1)]


def test_strategies_of_another_space_are_learned_from() -> None:
    foreign = Strategy(zero_stage=1, micro_batch_size=8, optimizer=Optimizer.LION)
    slow = outcome(foreign, truth=lambda _: 1.3)
    sampler = make_sampler()
    assert sampler.propose([trial(0, foreign, slow)]) is not None
    rows = np.arange(len(sampler._table))
    before = sampler._surrogate.step_time([], rows).mean
    after = sampler._surrogate.step_time([trial(n, foreign, slow) for n in range(2)], rows).mean
    assert np.median(after - before) > 0.05


@pytest.mark.slow
def test_a_short_list_leaves_nothing_out_and_finds_the_same_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = search(make_sampler(min_gain=0.0), 1000)
    monkeypatch.setattr("autotune.samplers.shortlist._NUM_ROWS", 16)
    monkeypatch.setattr("autotune.trials.refit._REFIT_FRACTION", 0.5)
    listed = search(make_sampler(min_gain=0.0), 1000)
    assert {t.strategy for t in listed} == {t.strategy for t in whole}

    def fastest(trials: Sequence[Trial]) -> float:
        return max(t.tokens_per_second for t in trials[:20])

    assert fastest(listed) == fastest(whole)


def test_a_belief_about_some_rows_is_that_about_all() -> None:
    sampler = make_sampler()
    trials = search(sampler, 6)
    everything, some = np.arange(len(sampler._table)), np.array([3, 11, 7])
    for goal in ("step_time", "peak_memory"):
        extra = (LIMIT_BYTES,) if goal == "peak_memory" else ()
        of_all = getattr(sampler._surrogate, goal)(trials, everything, *extra)
        of_some = getattr(sampler._surrogate, goal)(trials, some, *extra)
        np.testing.assert_allclose(of_some.mean, of_all.mean[some], rtol=1e-9)
        np.testing.assert_allclose(of_some.deviation, of_all.deviation[some], rtol=1e-6)
        np.testing.assert_allclose(
            of_some.covariance(np.array([0, 2])), of_all.covariance(some[[0, 2]]), rtol=1e-6
        )


def test_odd_measurements_are_taken_in() -> None:
    sampler = make_sampler(min_gain=0.0)
    trials: list[Trial] = []
    for number in range(12):
        strategy = sampler.propose(trials)
        assert strategy is not None
        ended = outcome(strategy)
        assert ended.measurement is not None
        odd = replace(
            ended.measurement,
            num_alloc_retries=number % 2,
            peak_reserved_bytes=0 if number % 3 else LIMIT_BYTES,
            peak_device_bytes=LIMIT_BYTES - number,
        )
        trials.append(trial(number, strategy, replace(ended, measurement=odd)))
    assert len({t.strategy for t in trials}) == 12
