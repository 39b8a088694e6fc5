"""What finished trials teach, on machines whose true coefficients are known, and on records."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from random import Random
from statistics import fmean

import pytest
from sample_study import HARDWARE, WORKLOAD, failed, pruned

from autotune.learner import CalibratedPredictor
from autotune.predictor import AnalyticPredictor
from autotune.predictor.uncertainty.coefficients import MemoryCurve, TimeCurve
from autotune.space.strategy import Strategy
from autotune.study.folder import StudyFolder
from autotune.study.stored import read_record
from autotune.trials.protocols import Predictor
from autotune.trials.trial import FailureKind, Measurement, Prediction, Trial, TrialState

ROOT = Path(__file__).parents[2]
PRIOR = AnalyticPredictor(WORKLOAD, HARDWARE)
STRATEGIES = tuple(
    Strategy(zero_stage=stage, micro_batch_size=size, checkpoint_interval=interval)
    for stage, size, interval in product((0, 1, 2, 3), (1, 2, 4, 8, 16, 32), (0, 1, 4))
)
TIME = {
    name: place
    for place, name in enumerate(
        ("compute", "traffic", "host", "hooks", "links", "moved", "overhead")
    )
}


def trial(number: int, strategy: Strategy, step_time_s: float, peak: int) -> Trial:
    measurement = Measurement(
        tokens_per_second=WORKLOAD.tokens_per_step / step_time_s,
        step_times_s=(step_time_s,),
        peak_allocated_bytes=peak,
        peak_reserved_bytes=peak,
        peak_device_bytes=peak,
    )
    return Trial(
        number=number,
        strategy=strategy,
        state=TrialState.COMPLETE,
        measurement=measurement,
        duration_s=5.0,
    )


def machine(
    strategies: tuple[Strategy, ...],
    *,
    time: Mapping[str, float] | None = None,
    memory: tuple[float, float] = (0.0, 0.0),
    noise: float = 0.0,
    seed: int = 0,
) -> list[Trial]:
    """Trials of a machine whose coefficients are these, not 0, with scatter."""
    at = [0.0] * len(TIME)
    for name, value in (time or {}).items():
        at[TIME[name]] = value
    random, trials = Random(seed), []
    for number, strategy in enumerate(strategies):
        prediction, parts = PRIOR.explain(strategy)
        seconds = math.exp(TimeCurve(parts).log_value(at) + random.gauss(0, noise))
        peak = math.exp(MemoryCurve.of(prediction).log_value(memory) + random.gauss(0, noise / 3))
        trials.append(trial(number, strategy, seconds, int(peak)))
    return trials


def drawn(num: int, seed: int = 0) -> tuple[Strategy, ...]:
    return tuple(Random(seed).sample(STRATEGIES, num))


def errors(predictor: Predictor, trials: list[Trial]) -> tuple[float, float]:
    """Mean errors of step time and of memory."""
    times, memories = [], []
    for one in trials:
        assert one.measurement is not None
        said = predictor.predict(one.strategy)
        times.append(abs(said.step_time_s / one.measurement.step_time_s - 1))
        memories.append(abs(said.peak_memory_bytes / one.measurement.peak_memory_bytes - 1))
    return fmean(times), fmean(memories)


@cache
def stored(name: str) -> tuple[AnalyticPredictor, tuple[Trial, ...]]:
    """The complete trials of a recorded study, and the present prior of its question."""
    folder = StudyFolder(ROOT / "results" / name)
    question = folder.read_question()
    record = read_record(folder, question, None)
    trials = tuple(t for t in record.trials() if t.state is TrialState.COMPLETE)
    return AnalyticPredictor(question.workload, question.hardware), trials


@pytest.mark.parametrize("num", [0, 1])
def test_fewer_than_two_trials_leave_the_prior_as_it_is(num: int) -> None:
    trials = machine(drawn(num), time={"compute": 0.5})
    calibrated = CalibratedPredictor(PRIOR, trials)
    assert all(calibrated.predict(s) == PRIOR.predict(s) for s in STRATEGIES)


def test_trials_that_the_prior_meets_leave_it_as_it_is() -> None:
    calibrated = CalibratedPredictor(PRIOR, machine(drawn(8)))
    for strategy in STRATEGIES:
        expected = PRIOR.predict(strategy)
        said = calibrated.predict(strategy)
        assert said.step_time_s == pytest.approx(expected.step_time_s, rel=1e-3)
        assert said.peak_memory_bytes == pytest.approx(expected.peak_memory_bytes, rel=1e-3)


@pytest.mark.parametrize(
    "time",
    [
        {"compute": 0.4},
        {"traffic": 0.5, "compute": -0.2},
        {"host": 0.5, "hooks": 0.5},
        {"host": -0.5, "hooks": -0.5},
        {"links": 0.8, "compute": 0.2},
        {"overhead": 5.0},
    ],
    ids=str,
)
def test_a_handful_of_trials_finds_another_machine(time: Mapping[str, float]) -> None:
    truth = machine(STRATEGIES, time=time)
    before, after = [], []
    for seed in range(6):
        calibrated = CalibratedPredictor(PRIOR, machine(drawn(8, seed), time=time, noise=0.01))
        before.append(errors(PRIOR, truth)[0])
        after.append(errors(calibrated, truth)[0])
    assert fmean(after) < 0.6 * fmean(before)


def test_more_trials_come_closer_to_the_truth() -> None:
    time = {"compute": 0.3, "traffic": 0.3, "host": 0.4, "hooks": -0.3, "links": 0.4}
    truth = machine(STRATEGIES, time=time, memory=(0.08, 0.4))
    some, many = (
        errors(CalibratedPredictor(PRIOR, machine(drawn(n), time=time, memory=(0.08, 0.4))), truth)
        for n in (6, 40)
    )
    before = errors(PRIOR, truth)
    assert many[0] < some[0] < before[0]
    assert many[1] <= some[1] < before[1]
    assert many[0] < 0.04
    assert many[1] < 0.01


@pytest.mark.parametrize("name", ["h100-1.1B-full-8m", "h100-13B-lora-10m"])
def test_recorded_studies_held_out_one_by_one_are_predicted_no_worse_than_before(
    name: str,
) -> None:
    prior, trials = stored(name)
    before, after = [], []
    for place, held_out in enumerate(trials):
        others = [*trials[:place], *trials[place + 1 :]]
        calibrated = CalibratedPredictor(prior, others)
        before.append(errors(prior, [held_out]))
        after.append(errors(calibrated, [held_out]))
    for quantity in (0, 1):
        assert fmean(e[quantity] for e in after) <= fmean(e[quantity] for e in before)


def test_noise_alone_is_not_learned() -> None:
    truth = machine(STRATEGIES)
    wrong = [
        errors(CalibratedPredictor(PRIOR, machine(drawn(6, s), noise=0.03, seed=s)), truth)[0]
        for s in range(12)
    ]
    assert fmean(wrong) < 0.01
    assert max(wrong) < 0.05


def test_one_trial_gone_wrong_moves_little() -> None:
    trials = machine(drawn(8), noise=0.01)
    assert trials[0].measurement is not None
    slow = trial(0, trials[0].strategy, 5 * trials[0].measurement.step_time_s, 10**9)
    calibrated = CalibratedPredictor(PRIOR, [slow, *trials[1:]])
    truth = machine(STRATEGIES)
    assert errors(calibrated, truth)[0] < 0.05
    assert errors(calibrated, truth)[1] < 0.02


def test_failed_pruned_running_and_thrashing_trials_teach_nothing() -> None:
    trials = machine(drawn(8), time={"compute": 0.5})
    assert trials[0].measurement is not None
    thrashing = [
        replace(t, measurement=replace(t.measurement, num_alloc_retries=1))
        for t in machine(drawn(8, 1), time={"compute": -0.5})
        if t.measurement is not None
    ]
    useless = [
        failed(90, FailureKind.DEVICE_OUT_OF_MEMORY),
        pruned(91, "too large"),
        replace(trials[0], state=TrialState.RUNNING),
        replace(trials[1], state=TrialState.FAILED),
        *thrashing,
    ]
    nothing = CalibratedPredictor(PRIOR, useless)
    clean, mixed = CalibratedPredictor(PRIOR, trials), CalibratedPredictor(PRIOR, trials + useless)
    for strategy in STRATEGIES:
        assert nothing.predict(strategy) == PRIOR.predict(strategy)
        assert mixed.predict(strategy) == clean.predict(strategy)
    assert clean.predict(STRATEGIES[0]) != PRIOR.predict(STRATEGIES[0])


def test_the_order_of_trials_does_not_matter() -> None:
    trials = machine(drawn(12), time={"compute": 0.3}, memory=(0.1, 0.3), noise=0.05)
    expected = CalibratedPredictor(PRIOR, trials)
    for seed in range(4):
        mixed = CalibratedPredictor(PRIOR, Random(seed).sample(trials, len(trials)))
        assert all(mixed.predict(s) == expected.predict(s) for s in STRATEGIES)


def test_learning_leaves_the_predictor_that_learns_as_it_was() -> None:
    prior_fit = CalibratedPredictor(PRIOR)
    taught = prior_fit.learn(machine(drawn(8), time={"compute": 0.5}))
    assert taught.predict(STRATEGIES[0]) != prior_fit.predict(STRATEGIES[0])
    assert prior_fit.predict(STRATEGIES[0]) == PRIOR.predict(STRATEGIES[0])


def _learned_memory(factor: float) -> CalibratedPredictor:
    """From trials that need so many times what the prior says."""
    trials = [
        trial(
            number,
            s,
            PRIOR.predict(s).step_time_s,
            int(PRIOR.predict(s).peak_memory_bytes * factor),
        )
        for number, s in enumerate(drawn(10))
    ]
    return CalibratedPredictor(PRIOR, trials)


@pytest.mark.parametrize("factor", [0.3, 0.9, 1.1, 3.0])
def test_memory_is_corrected_by_15_percent_at_most_and_within_the_priors_interval(
    factor: float,
) -> None:
    calibrated = _learned_memory(factor)
    for strategy in STRATEGIES:
        before, after = PRIOR.predict(strategy), calibrated.predict(strategy)
        assert 1 / 1.151 < after.peak_memory_bytes / before.peak_memory_bytes < 1.151
        assert (
            before.peak_memory_lower_bytes
            <= after.peak_memory_bytes
            <= before.peak_memory_upper_bytes
        )


@pytest.mark.parametrize("factor", [0.3, 0.9, 1.1, 3.0])
def test_what_is_expected_lies_in_its_interval(factor: float) -> None:
    calibrated = _learned_memory(factor)

    def is_in_order(said: Prediction) -> bool:
        lower, upper = said.peak_memory_lower_bytes, said.peak_memory_upper_bytes
        return 0 < lower <= said.peak_memory_bytes <= upper

    assert all(is_in_order(calibrated.predict(strategy)) for strategy in STRATEGIES)


def test_trials_that_agree_narrow_the_interval() -> None:
    calibrated = CalibratedPredictor(PRIOR, machine(drawn(30), memory=(0.1, 0.0)))
    before, after = PRIOR.predict(STRATEGIES[0]), calibrated.predict(STRATEGIES[0])

    def width(said: Prediction) -> float:
        return said.peak_memory_upper_bytes / said.peak_memory_lower_bytes

    assert width(after) < width(before)


def test_throughput_follows_the_corrected_step_time() -> None:
    calibrated = CalibratedPredictor(PRIOR, machine(drawn(8), time={"compute": 0.5}))
    for strategy in STRATEGIES:
        said = calibrated.predict(strategy)
        assert said.tokens_per_second * said.step_time_s == pytest.approx(WORKLOAD.tokens_per_step)


def test_trials_narrow_the_interval_of_step_times_and_hold_the_truth() -> None:
    time = {"compute": 0.15, "host": -0.3}
    truth = machine(STRATEGIES, time=time, noise=0.02, seed=1)
    calibrated = CalibratedPredictor(PRIOR, machine(drawn(12), time=time, noise=0.02))
    num_inside = 0
    for one in truth:
        before, after = PRIOR.predict(one.strategy), calibrated.predict(one.strategy)
        assert before.step_time_lower_s is not None
        assert before.step_time_upper_s is not None
        assert after.step_time_lower_s is not None
        assert after.step_time_upper_s is not None
        assert after.step_time_lower_s < after.step_time_s < after.step_time_upper_s
        assert (
            after.step_time_upper_s / after.step_time_lower_s
            < before.step_time_upper_s / before.step_time_lower_s
        )
        assert one.measurement is not None
        seconds = one.measurement.step_time_s
        num_inside += after.step_time_lower_s <= seconds <= after.step_time_upper_s
    assert num_inside >= 0.9 * len(truth)


def test_another_questions_trials_teach_coefficients_and_nothing_of_single_strategies() -> None:
    larger = replace(WORKLOAD, global_batch_size=2 * WORKLOAD.global_batch_size)
    prior = AnalyticPredictor(larger, HARDWARE)
    trials = machine(drawn(12), time={"compute": 0.4})
    taught = CalibratedPredictor(prior, trials, source=PRIOR)
    for strategy in STRATEGIES:
        before, after = prior.predict(strategy), taught.predict(strategy)
        assert after.step_time_s >= 0.99 * before.step_time_s
        lower, upper = after.peak_memory_lower_bytes, after.peak_memory_upper_bytes
        assert lower <= after.peak_memory_bytes <= upper
    assert taught.predict(STRATEGIES[-1]).step_time_s > prior.predict(STRATEGIES[-1]).step_time_s
