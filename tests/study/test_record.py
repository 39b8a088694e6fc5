"""The record against a real storage, and what plain Optuna reads in it."""

from __future__ import annotations

import warnings
from pathlib import Path

import optuna
import pytest
from sample_study import complete, prediction

from autotune.errors import StorageError
from autotune.space.strategy import Strategy
from autotune.study.pareto import pareto_front
from autotune.study.record import TrialRecord
from autotune.trials.trial import Failure, FailureKind, Outcome, Phase, Trial, TrialState

GIB = 2**30
CHOICES = {"zero_stage": (0, 1, 2, 3), "micro_batch_size": (1, 2, 4, 8)}
OUT_OF_MEMORY = Failure(
    kind=FailureKind.DEVICE_OUT_OF_MEMORY, message="no memory", phase=Phase.BACKWARD, rank=1
)
INTERRUPTED = Failure(kind=FailureKind.INTERRUPTED, message="stopped")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


def open_record(url: str, owner: str = "here", *, must_exist: bool = False) -> TrialRecord:
    return TrialRecord(
        url,
        "study",
        owner=owner,
        choices=CHOICES,
        memory_limit_bytes=76 * GIB,
        must_exist=must_exist,
    )


def add(
    record: TrialRecord,
    micro_batch_size: int,
    tokens_per_second: float,
    gib: float,
    num_alloc_retries: int = 0,
) -> Trial:
    trial = record.start(Strategy(micro_batch_size=micro_batch_size), prediction(gib))
    measured = complete(
        trial.number, tokens_per_second, gib, num_alloc_retries=num_alloc_retries
    ).measurement
    return record.finish(trial, Outcome(measurement=measured, duration_s=6.0))


def as_optuna_sees_it(url: str) -> optuna.Study:
    return optuna.load_study(study_name="study", storage=url)


def test_every_ending_reads_back_as_it_was_told(url: str) -> None:
    record = open_record(url)
    measured = add(record, 1, 1000.0, 10.0)
    failing = record.start(Strategy(micro_batch_size=2), prediction(20.0))
    failed = record.finish(failing, Outcome(failure=OUT_OF_MEMORY, duration_s=2.0))
    pruned = record.add_pruned(Strategy(micro_batch_size=4), prediction(90.0), "too large")
    running = record.start(Strategy(micro_batch_size=8), prediction(30.0))

    told = [measured, failed, pruned, running]
    assert [trial.number for trial in told] == [0, 1, 2, 3]
    assert [t.state for t in told] == ["complete", "failed", "pruned", "running"]
    # NaN equals nothing, so the losses of the sample are compared by their text.
    assert list(map(str, open_record(url).trials())) == list(map(str, told))


def test_an_interrupted_trial_has_a_state_of_its_own_and_is_no_failed_one(url: str) -> None:
    record = open_record(url)
    interrupted = Failure(kind=FailureKind.INTERRUPTED, message="the user interrupted the search")
    started = record.start(Strategy(micro_batch_size=2), prediction(20.0))
    told = record.finish(started, Outcome(failure=interrupted, duration_s=2.0))
    assert told.state is TrialState.INTERRUPTED
    [read] = open_record(url).trials()
    assert read == told
    assert as_optuna_sees_it(url).trials[0].state is optuna.trial.TrialState.FAIL


def test_optuna_reads_pruned_trials_with_their_reason(url: str) -> None:
    open_record(url).add_pruned(Strategy(micro_batch_size=4), prediction(90.0), "too large")
    [trial] = as_optuna_sees_it(url).trials
    assert trial.state is optuna.trial.TrialState.PRUNED
    assert trial.user_attrs["reason"] == "too large"
    assert trial.params == {"zero_stage": 0, "micro_batch_size": 4}


def test_what_a_trial_had_measured_when_it_ended_early_is_kept(url: str) -> None:
    record = open_record(url)
    started = record.start(Strategy(micro_batch_size=2), prediction(20.0))
    measured = complete(0, 500.0, 20.0).measurement
    told = record.finish(
        started, Outcome(measurement=measured, reason="trial 0 is faster", duration_s=4.0)
    )
    assert (told.state, told.was_launched) == (TrialState.PRUNED, True)
    [read] = open_record(url).trials()
    assert str(read) == str(told)
    assert read.measurement is not None
    assert as_optuna_sees_it(url).trials[0].state is optuna.trial.TrialState.PRUNED


def test_a_run_that_confirms_a_trial_is_part_of_it_and_no_trial_of_its_own(url: str) -> None:
    record = open_record(url)
    first = add(record, 1, 1000.0, 10.0)
    add(record, 2, 900.0, 9.0)
    measured = complete(0, 950.0, 11.0).measurement
    for outcome in (
        Outcome(measurement=measured, duration_s=9.0),
        Outcome(failure=INTERRUPTED, duration_s=1.0),
    ):
        run = record.start(first.strategy, prediction(10.0), confirms=first.number)
        record.finish(run, outcome)
    record.start(first.strategy, prediction(10.0), confirms=first.number)

    [again, other] = open_record(url).trials()
    assert len(again.confirmations) == 1
    assert (again.tokens_per_second, again.peak_memory_bytes) == (950.0, 11 * GIB)
    assert again.fits
    assert other.confirmations == ()
    assert open_record(url).recover() == 1
    assert as_optuna_sees_it(url).trials[2].user_attrs["confirms"] == 0


def test_a_later_run_out_of_memory_takes_a_trial_off_the_front(url: str) -> None:
    record = open_record(url)
    trial = add(record, 1, 1000.0, 10.0)
    run = record.start(trial.strategy, prediction(10.0), confirms=trial.number)
    record.finish(run, Outcome(failure=OUT_OF_MEMORY, duration_s=1.0))
    assert pareto_front(record.trials()) == []


def test_optunas_best_trials_are_our_front(url: str) -> None:
    record = open_record(url)
    add(record, 1, 1000.0, 10.0)
    add(record, 2, 2000.0, 20.0)
    add(record, 4, 1500.0, 30.0)  # dominated
    add(record, 8, 3000.0, 77.0)  # beyond the limit of 76 GiB
    add(record, 8, 4000.0, 40.0, num_alloc_retries=2)  # its allocator thrashes
    failing = record.start(Strategy(zero_stage=1), prediction(20.0))
    record.finish(failing, Outcome(failure=OUT_OF_MEMORY, duration_s=2.0))
    record.add_pruned(Strategy(zero_stage=2), prediction(90.0), "too large")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        best = as_optuna_sees_it(url).best_trials
    assert {trial.number for trial in best} == {0, 1}
    assert {trial.number for trial in pareto_front(record.trials())} == {0, 1}


def test_only_trials_of_the_same_owner_are_recovered(url: str) -> None:
    here, there = open_record(url, "here"), open_record(url, "there")
    left = here.start(Strategy(micro_batch_size=1), prediction(1.0))
    going_on = there.start(Strategy(micro_batch_size=2), prediction(1.0))
    assert open_record(url, "here").recover() == 1

    trials = {trial.number: trial for trial in here.trials()}
    assert trials[going_on.number].state is TrialState.RUNNING
    failure = trials[left.number].failure
    assert failure is not None
    assert failure.kind is FailureKind.INTERRUPTED


def test_writers_in_turn_keep_their_own_strategies(url: str) -> None:
    records = [open_record(url, owner) for owner in ("here", "there")]
    strategies = [Strategy(micro_batch_size=size) for size in (1, 2, 4, 8)]
    started = [
        records[i % 2].start(strategy, prediction(1.0)) for i, strategy in enumerate(strategies)
    ]
    assert [trial.strategy for trial in started] == strategies
    for trial, stored in zip(started, as_optuna_sees_it(url).trials, strict=True):
        assert stored.number == trial.number
        assert stored.params["micro_batch_size"] == trial.strategy.micro_batch_size
        assert stored.user_attrs["strategy"] == trial.strategy.to_dict()


def test_a_started_trial_is_written_whole_or_not_at_all(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = open_record(url)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for later_write in ("set_trial_user_attr", "set_trial_param"):
        monkeypatch.setattr(type(record._storage), later_write, killed)
    assert record.start(Strategy(), prediction(1.0)) == record.trials()[0]


def test_the_first_question_of_a_stored_study_is_kept(url: str) -> None:
    assert open_record(url).keep_question({"seed": 0}) == {"seed": 0}
    assert open_record(url).keep_question({"seed": 7}) == {"seed": 0}


def test_a_study_that_must_exist_is_not_made(url: str) -> None:
    with pytest.raises(StorageError, match="cannot be used"):
        open_record(url, must_exist=True)
    assert optuna.get_all_study_names(url) == []


def test_a_file_that_is_no_storage_is_told_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    file.write_text("not a database, but longer than its header would be" * 10)
    before = file.read_bytes()
    with pytest.raises(StorageError, match=r"study\.db cannot be used: .*; choose another"):
        open_record(f"sqlite:///{file}")
    assert file.read_bytes() == before


def test_a_password_is_never_shown() -> None:
    with pytest.raises(StorageError) as error:
        open_record("nonsense://me:secret@host/db")
    assert "me:***@host" in str(error.value)
    assert "secret" not in str(error.value)


def test_a_trial_of_somebody_else_is_told_by_its_number(url: str) -> None:
    record = open_record(url)
    values = {"values": [1.0, 2.0]}
    as_optuna_sees_it(url).add_trial(optuna.trial.create_trial(**values))
    with pytest.raises(StorageError, match=r"trial 0 in .* was not written by this version"):
        record.trials()


def test_a_reused_measurement_is_complete_was_never_launched_and_says_where_from(url: str) -> None:
    record = open_record(url)
    source = "trial 7 of results/earlier"
    trial = record.start(Strategy(micro_batch_size=4), prediction(10.0), reused_from=source)
    measured = complete(0, 1000.0, 10.0).measurement
    record.finish(trial, Outcome(measurement=measured))
    found = open_record(url).trials()[0]
    assert found.state is TrialState.COMPLETE
    assert found.reused_from == source
    assert not found.was_launched
    assert found.fits


def test_a_value_that_the_space_does_not_have_is_kept_in_the_strategy(url: str) -> None:
    """Such as a baseline's: Optuna's parameters are those of the space."""
    own = Strategy(zero_stage=1, micro_batch_size=3, reduce_bucket_size=9216)
    open_record(url).start(own, prediction(1.0))
    [read] = open_record(url).trials()
    assert read.strategy == own
    [trial] = optuna.load_study(study_name="study", storage=url).trials
    assert trial.params == {"zero_stage": 1}
