import pytest
from optuna.trial import TrialState as OptunaState

from autotune.samplers.observation import Observation, impossible, observation_of
from autotune.space.strategy import Strategy
from autotune.trials.trial import Failure, FailureKind, Measurement, Prediction, Trial, TrialState

LIMIT = 1000


def make_trial(
    state: TrialState,
    *,
    peak: int | None = None,
    retries: int = 0,
    predicted: int | None = None,
    failure: FailureKind | None = None,
    duration_s: float = 0.0,
) -> Trial:
    measurement = peak and Measurement(
        tokens_per_second=50.0,
        step_times_s=(0.1,),
        peak_allocated_bytes=peak - 200,
        peak_reserved_bytes=peak - 100,
        peak_device_bytes=peak,
        num_alloc_retries=retries,
    )
    prediction = predicted and Prediction(
        peak_memory_bytes=predicted,
        peak_memory_lower_bytes=predicted,
        peak_memory_upper_bytes=predicted,
        step_time_s=0.1,
        tokens_per_second=70.0,
    )
    return Trial(
        number=0,
        strategy=Strategy(),
        state=state,
        measurement=measurement or None,
        prediction=prediction or None,
        failure=Failure(kind=failure, message="planted") if failure else None,
        duration_s=duration_s,
        memory_limit_bytes=LIMIT,
    )


def observation(trial: Trial) -> Observation:
    found = observation_of(trial, LIMIT)
    assert found is not None
    return found


def test_a_strategy_that_fits_teaches_its_measured_values() -> None:
    found = observation(make_trial(TrialState.COMPLETE, peak=800))
    assert found.state is OptunaState.COMPLETE
    assert found.values == (50.0, 700.0)
    assert found.violation == pytest.approx(-0.2)


@pytest.mark.parametrize(("peak", "retries"), [(1100, 0), (900, 1), (5000, 0)])
def test_a_measured_strategy_that_does_not_fit_violates_the_constraint(
    peak: int, retries: int
) -> None:
    found = observation(make_trial(TrialState.COMPLETE, peak=peak, retries=retries))
    assert found.violation is not None
    assert 0 < found.violation <= 1


@pytest.mark.parametrize(
    "kind", [FailureKind.DEVICE_OUT_OF_MEMORY, FailureKind.HOST_OUT_OF_MEMORY]
)
def test_out_of_memory_is_a_complete_lesson_with_predicted_values(kind: FailureKind) -> None:
    found = observation(make_trial(TrialState.FAILED, predicted=1300, failure=kind))
    assert found.state is OptunaState.COMPLETE
    assert found.values == pytest.approx((70.0, 1300.0))
    assert found.violation == pytest.approx(0.3)


def test_out_of_memory_violates_the_constraint_although_its_prediction_fits() -> None:
    kind = FailureKind.DEVICE_OUT_OF_MEMORY
    found = observation(make_trial(TrialState.FAILED, predicted=500, failure=kind))
    assert found.violation is not None
    assert found.violation > 0


def test_what_ended_early_teaches_what_it_had_measured() -> None:
    found = observation(make_trial(TrialState.PRUNED, peak=800, duration_s=2.0))
    assert found == observation(make_trial(TrialState.COMPLETE, peak=800))


def test_pruned_before_launch_violates_and_pruned_while_running_does_not() -> None:
    before = observation(make_trial(TrialState.PRUNED, predicted=1300))
    while_running = observation(make_trial(TrialState.PRUNED, predicted=300, duration_s=2.0))
    assert before.violation == pytest.approx(0.3)
    assert while_running == Observation(state=OptunaState.PRUNED)


@pytest.mark.parametrize(
    "kind", [FailureKind.TIMEOUT, FailureKind.CRASH, FailureKind.INVALID_CONFIGURATION]
)
def test_other_failures_teach_nothing_but_that_they_failed(kind: FailureKind) -> None:
    assert observation(make_trial(TrialState.FAILED, failure=kind)) == Observation(
        state=OptunaState.FAIL
    )


@pytest.mark.parametrize(
    "trial",
    [
        make_trial(TrialState.RUNNING),
        make_trial(TrialState.FAILED, failure=FailureKind.INTERRUPTED),
        make_trial(TrialState.FAILED, failure=FailureKind.COMMUNICATION),
    ],
)
def test_what_runs_or_broke_for_other_reasons_is_no_lesson(trial: Trial) -> None:
    assert observation_of(trial, LIMIT) is None


def test_an_impossible_choice_is_the_worst_lesson() -> None:
    assert impossible(LIMIT) == Observation(
        state=OptunaState.COMPLETE, values=(0.0, 2000.0), violation=1.0
    )
