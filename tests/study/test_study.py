"""The study over a real record, with a sampler and a predictor that do as they are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from sample_study import complete, prediction

from autotune.pruners import DominancePruner, PredictedMemoryPruner
from autotune.space.strategy import Strategy
from autotune.study.record import TrialRecord
from autotune.study.study import Study
from autotune.trials.protocols import Pruner
from autotune.trials.trial import (
    Failure,
    FailureKind,
    Outcome,
    Phase,
    Prediction,
    Trial,
    TrialState,
)

GIB = 2**30


class InOrder:
    """A sampler: micro-batches from 1 up."""

    end_reason: str | None = None

    def __init__(self, num: int = 8) -> None:
        self._strategies = [Strategy(micro_batch_size=size + 1) for size in range(num)]

    def propose(self, trials: Sequence[Trial]) -> Strategy | None:
        tried = {trial.strategy for trial in trials}
        return next((s for s in self._strategies if s not in tried), None)


class TenGibASample:
    """A predictor: memory goes with the micro-batch; step times are given by it."""

    def __init__(self, step_times_s: dict[int, float] | None = None) -> None:
        self._step_times_s = step_times_s or {}

    def predict(self, strategy: Strategy) -> Prediction:
        size = strategy.micro_batch_size
        return replace(prediction(10.0 * size), step_time_s=self._step_times_s.get(size, 1.0))


class Objects:
    """A pruner with one sentence for everything."""

    def __init__(self, reason: str | None) -> None:
        self._reason = reason

    def reason_to_skip(self, *_: object) -> str | None:
        return self._reason


@pytest.fixture
def record(tmp_path: Path) -> TrialRecord:
    return TrialRecord(
        f"sqlite:///{tmp_path / 'study.db'}",
        "study",
        owner="here",
        choices={"micro_batch_size": tuple(range(1, 20))},
        memory_limit_bytes=76 * GIB,
    )


def make_study(
    record: TrialRecord,
    *,
    pruners: Sequence[Pruner] = (),
    max_trials: int | None = None,
    num: int = 8,
    step_times_s: dict[int, float] | None = None,
    num_forced: int = 0,
    num_confirmed: int = 0,
    unpruned: Strategy | None = None,
) -> Study:
    return Study(
        record,
        sampler=InOrder(num),
        predictor=TenGibASample(step_times_s),
        pruners=pruners,
        max_trials=max_trials,
        num_forced=num_forced,
        num_confirmed=num_confirmed,
        unpruned=unpruned,
    )


def failure(kind: FailureKind, phase: Phase = Phase.FORWARD) -> Outcome:
    return Outcome(failure=Failure(kind=kind, message="planted", phase=phase), duration_s=2.0)


def success(size: int) -> Outcome:
    return Outcome(measurement=complete(0, 1000.0 * size, 10.0 * size).measurement, duration_s=6.0)


def sizes(trials: Sequence[Trial]) -> list[int]:
    return [trial.strategy.micro_batch_size for trial in trials]


def test_what_the_user_has_is_launched_whatever_the_pruners_object(record: TrialRecord) -> None:
    own = Strategy(micro_batch_size=2)
    study = make_study(record, pruners=[Objects("too large")], unpruned=own)
    asked = study.ask(100.0)
    assert asked is not None
    assert asked.strategy == own
    assert [trial.reason for trial in study.trials] == ["too large", None]


def test_what_is_asked_for_is_on_record_as_running_with_its_prediction(
    record: TrialRecord,
) -> None:
    trial = make_study(record).ask(100.0)
    assert trial is not None
    assert record.trials() == [trial]
    assert trial.state is TrialState.RUNNING
    assert trial.prediction == TenGibASample().predict(trial.strategy)


def test_what_is_told_is_on_record(record: TrialRecord) -> None:
    study = make_study(record)
    trial = study.ask(100.0)
    assert trial is not None
    ended = study.tell(trial, failure(FailureKind.CRASH))
    assert list(study.trials) == record.trials() == [ended]


def test_a_space_that_is_tried_out_ends_the_search(record: TrialRecord) -> None:
    study = make_study(record, num=2)
    for size in (1, 2):
        trial = study.ask(100.0)
        assert trial is not None
        study.tell(trial, success(size))
    assert study.ask(100.0) is None
    assert study.end_reason == "every strategy of the space was launched or pruned"


def test_a_spent_budget_ends_the_search(record: TrialRecord) -> None:
    study = make_study(record)
    assert study.ask(0.0) is None
    assert study.end_reason == "the budget is used up"
    assert record.trials() == []


def test_what_a_pruner_rules_out_is_on_record_with_the_first_objection(
    record: TrialRecord,
) -> None:
    objections = [Objects(None), Objects("too large"), Objects("ugly")]
    study = make_study(record, num=3, pruners=objections)
    assert study.ask(100.0) is None
    assert [(t.state, t.reason) for t in record.trials()] == [("pruned", "too large")] * 3


def test_what_is_predicted_not_to_fit_is_never_launched(record: TrialRecord) -> None:
    study = make_study(
        record, pruners=[PredictedMemoryPruner(25 * GIB, host_memory_bytes=128 * GIB)]
    )
    launched = []
    while (trial := study.ask(100.0)) is not None:
        launched.append(study.tell(trial, success(trial.strategy.micro_batch_size)))
    assert sizes(launched) == [1, 2]
    assert len(record.trials()) == 8


def test_neighbours_that_need_more_than_what_ran_out_of_memory_are_ruled_out(
    record: TrialRecord,
) -> None:
    study = make_study(record, pruners=[DominancePruner()])
    trial = study.ask(100.0)
    assert trial is not None
    study.tell(trial, failure(FailureKind.DEVICE_OUT_OF_MEMORY))
    assert study.ask(100.0) is None
    reasons = {trial.reason for trial in record.trials()[1:]}
    assert reasons == {
        "trial 0 ran out of device memory in forward with micro-batch 1; this strategy needs at "
        "least as much"
    }


def test_nothing_is_started_that_is_not_expected_to_finish(record: TrialRecord) -> None:
    # An overhead of 8 s, then four long steps: 48 s, but 13 s for the third strategy.
    study = make_study(record, step_times_s={1: 10.0, 2: 10.0, 3: 1.0})
    trial = study.ask(20.0)
    assert trial is not None
    assert trial.strategy.micro_batch_size == 3
    assert sizes(record.trials()) == [3]


def test_a_rest_too_short_for_any_trial_ends_the_search(record: TrialRecord) -> None:
    study = make_study(record, num=19)
    assert study.ask(5.0) is None
    assert study.end_reason == "the remaining budget is too short for another trial"
    assert record.trials() == []


def test_max_trials_counts_launches_of_earlier_sessions_but_nothing_pruned(
    record: TrialRecord,
) -> None:
    record.add_pruned(Strategy(micro_batch_size=1), prediction(90.0), "too large")
    first = record.start(Strategy(micro_batch_size=2), prediction(1.0))
    record.finish(first, success(2))
    study = make_study(record, max_trials=2)
    trial = study.ask(100.0)
    assert trial is not None
    study.tell(trial, success(3))
    assert study.ask(100.0) is None
    assert study.end_reason == "the limit of --trials 2 is reached"


def test_the_best_are_run_again_when_nothing_new_is_left_and_add_no_trials(
    record: TrialRecord,
) -> None:
    study = make_study(record, num=2, num_confirmed=2)
    again = []
    while (trial := study.ask(1000.0)) is not None:
        if trial.confirms is not None:
            again.append(trial.confirms)
        study.tell(trial, success(trial.strategy.micro_batch_size))
    # The second is twice as fast, in twice the memory.
    assert again == [1, 0, 1, 0, 1, 0]
    assert study.end_reason == "every strategy of the space was launched or pruned"
    assert [len(trial.confirmations) for trial in study.trials] == [3, 3]
    assert list(map(str, record.trials())) == list(map(str, study.trials))


def test_runs_that_confirm_wait_for_whatever_still_runs(record: TrialRecord) -> None:
    study = make_study(record, num=2, num_confirmed=1)
    first, second = study.ask(1000.0), study.ask(1000.0)
    assert first is not None
    assert second is not None
    study.tell(first, success(1))
    assert study.ask(1000.0) is None
    study.tell(second, success(2))
    run = study.ask(1000.0)
    assert run is not None
    assert run.confirms == 1
    assert study.ask(1000.0) is None


def _steady(tokens_per_second: float, gib: float, reason: str | None = None) -> Outcome:
    measured = complete(0, tokens_per_second, gib).measurement
    assert measured is not None
    steady = replace(measured, step_times_s=(1.0, 1.001, 0.999, 1.0))
    return Outcome(measurement=steady, reason=reason, duration_s=6.0)


def test_what_ended_early_against_a_lucky_run_is_run_again_once_that_is_confirmed_slower(
    record: TrialRecord,
) -> None:
    study = make_study(record, num=2, num_confirmed=1)
    lucky, beaten = study.ask(1000.0), study.ask(1000.0)
    assert lucky is not None
    assert beaten is not None
    study.tell(lucky, _steady(2000, 10))
    study.tell(beaten, _steady(1900, 20, reason="at best 1,902 tokens/s"))
    asked = []
    while (trial := study.ask(1000.0)) is not None and len(asked) < 20:
        asked.append((trial.confirms, trial.strategy.micro_batch_size))
        study.tell(trial, _steady(1700, 10) if trial.confirms == 0 else _steady(1900, 20))
    # Three runs lower the first; the other runs anew, to its end, and is confirmed in its turn.
    assert asked == [(0, 1)] * 3 + [(None, 2)] + [(5, 2)] * 3
    assert [t.state for t in study.trials] == ["complete", "pruned", "complete"]


def test_time_is_kept_for_running_the_best_again(record: TrialRecord) -> None:
    study = make_study(record, num_confirmed=1)
    first = study.ask(200.0)
    assert first is not None
    study.tell(first, success(1))
    # Three more runs of 9.8 s and a tenth are kept; a new trial takes longer than what is left.
    run = study.ask(30.0)
    assert run is not None
    assert run.confirms == first.number


def test_a_trial_that_ended_early_counts_as_launched_and_is_not_tried_again(
    record: TrialRecord,
) -> None:
    study = make_study(record, max_trials=1)
    trial = study.ask(100.0)
    assert trial is not None
    ended = study.tell(trial, replace(success(1), reason="trial 0 is faster"))
    assert ended.state is TrialState.PRUNED
    assert study.ask(100.0) is None
    assert study.end_reason == "the limit of --trials 1 is reached"


@pytest.mark.parametrize(
    "kind", [FailureKind.INTERRUPTED, FailureKind.COMMUNICATION, FailureKind.LOST_NODE]
)
def test_a_trial_that_the_machinery_failed_is_run_again_first_but_not_for_ever(
    record: TrialRecord, kind: FailureKind
) -> None:
    asked = []
    for _ in range(4):
        # Each time a new session, as after Ctrl-C or a kill.
        trial = make_study(record, max_trials=1).ask(100.0)
        assert trial is not None
        record.finish(trial, failure(kind))
        asked.append(trial)
    assert sizes(asked) == [1, 1, 1, 2]


@pytest.mark.parametrize(
    "kind",
    [FailureKind.CRASH, FailureKind.TIMEOUT, FailureKind.DEVICE_OUT_OF_MEMORY],
)
def test_a_failure_of_the_strategys_own_is_not_repeated(
    record: TrialRecord, kind: FailureKind
) -> None:
    study = make_study(record)
    for expected in (1, 2):
        trial = study.ask(100.0)
        assert trial is not None
        assert trial.strategy.micro_batch_size == expected
        study.tell(trial, failure(kind))


class SevenGibASample(TenGibASample):
    """What was learned: it needs less."""

    factor = 0.7

    def predict(self, strategy: Strategy) -> Prediction:
        return prediction(10.0 * self.factor * strategy.micro_batch_size)


class TwentyGibASample(SevenGibASample):
    """What was learned: it needs more."""

    factor = 2.0


@pytest.mark.parametrize(
    ("learned", "launched"), [(SevenGibASample(), [1, 2, 3]), (TwentyGibASample(), [1, 2])]
)
def test_what_was_learned_can_save_a_strategy_from_pruning_but_not_condemn_it(
    record: TrialRecord, learned: TenGibASample, launched: list[int]
) -> None:
    study = Study(
        record,
        sampler=InOrder(8),
        predictor=TenGibASample(),
        learn=lambda trials: learned,
        pruners=[PredictedMemoryPruner(25 * GIB, host_memory_bytes=128 * GIB)],
    )
    asked = []
    while (trial := study.ask(100.0)) is not None:
        assert trial.prediction == learned.predict(trial.strategy)
        asked.append(study.tell(trial, failure(FailureKind.CRASH)))
    assert sizes(asked) == launched


def test_a_prediction_on_record_is_the_one_made_before_the_trial_ran(record: TrialRecord) -> None:
    def learn(trials: Sequence[Trial]) -> TenGibASample:
        return SevenGibASample() if any(t.measurement for t in trials) else TenGibASample()

    study = Study(record, sampler=InOrder(2), predictor=TenGibASample(), learn=learn, pruners=[])
    for size in (1, 2):
        trial = study.ask(100.0)
        assert trial is not None
        study.tell(trial, success(size))
    peaks = [t.prediction.peak_memory_bytes / GIB for t in record.trials() if t.prediction]
    assert peaks == pytest.approx([10.0, 14.0])


LIMITED = PredictedMemoryPruner(76 * GIB, host_memory_bytes=GIB)
"""Of `TenGibASample`, micro-batches from 8 up are too large."""


def run_all(study: Study) -> list[Trial]:
    while (trial := study.ask(1000.0)) is not None:
        study.tell(trial, success(trial.strategy.micro_batch_size))
    return list(study.trials)


def test_what_prediction_pruned_is_never_launched_unasked(record: TrialRecord) -> None:
    trials = run_all(make_study(record, pruners=(LIMITED,), num=11))
    assert [t.state is TrialState.PRUNED for t in trials] == [False] * 7 + [True] * 4
    assert not any(trial.is_forced for trial in trials)


def test_forced_trials_are_the_nearest_to_the_limit_and_marked_on_record(
    record: TrialRecord,
) -> None:
    run_all(make_study(record, pruners=(LIMITED,), num=11))
    run_all(make_study(record, pruners=(LIMITED,), num=11, num_forced=2))
    forced = [trial for trial in record.trials() if trial.is_forced]
    assert sizes(forced) == [8, 9]
    assert all(trial.state is TrialState.COMPLETE and not trial.fits for trial in forced)


def test_forced_trials_of_earlier_sessions_count(record: TrialRecord) -> None:
    for _ in range(2):
        run_all(make_study(record, pruners=(LIMITED,), num=9, num_forced=1))
    assert sizes([trial for trial in record.trials() if trial.is_forced]) == [8]


def test_what_the_last_proposal_pruned_can_be_forced_too(record: TrialRecord) -> None:
    trials = run_all(make_study(record, pruners=(LIMITED,), num=8, num_forced=3))
    assert sizes([trial for trial in trials if trial.is_forced]) == [8]


def test_a_forced_trial_that_was_interrupted_is_forced_again(record: TrialRecord) -> None:
    study = make_study(record, pruners=(LIMITED,), num=8, num_forced=1)
    while (trial := study.ask(1000.0)) is not None and not trial.is_forced:
        study.tell(trial, success(trial.strategy.micro_batch_size))
    assert trial is not None
    study.tell(trial, failure(FailureKind.INTERRUPTED))
    again = study.ask(1000.0)
    assert again is not None
    assert again.is_forced
    assert again.strategy == trial.strategy


def test_a_forced_trial_that_takes_too_long_does_not_end_the_search(record: TrialRecord) -> None:
    run_all(make_study(record, pruners=(LIMITED,), num=8))
    study = make_study(record, num=9, num_forced=1, step_times_s={8: 1e6})
    trial = study.ask(1000.0)
    assert trial is not None
    assert trial.strategy.micro_batch_size == 9


def test_reused_trials_are_no_launches(record: TrialRecord) -> None:
    reused = record.start(
        Strategy(micro_batch_size=1), prediction(1.0), reused_from="trial 0 of x"
    )
    record.finish(reused, Outcome(measurement=success(1).measurement))
    study = make_study(record, max_trials=1)
    trial = study.ask(100.0)
    assert trial is not None
    assert trial.strategy.micro_batch_size == 2


def test_a_samplers_own_reason_to_end_is_the_studys(record: TrialRecord) -> None:
    sampler = InOrder(0)
    sampler.end_reason = "enough is known"
    study = Study(record, sampler=sampler, predictor=TenGibASample(), pruners=[])
    assert study.ask(100.0) is None
    assert study.end_reason == "enough is known"
