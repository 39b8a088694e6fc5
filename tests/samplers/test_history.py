"""What the sampler sees of the trials so far."""

from __future__ import annotations

from dataclasses import replace

from planted_truth import LIMIT_BYTES, PLAN, outcome, trial

from autotune.samplers.history import History
from autotune.space.strategy import Strategy
from autotune.trials.trial import Failure, FailureKind, Trial, TrialState

STRATEGIES = [candidate.strategy for candidate in PLAN.candidates]


def row_of(strategy: Strategy) -> int | None:
    return STRATEGIES.index(strategy) if strategy in STRATEGIES else None


ENDED = [trial(n, strategy, outcome(strategy)) for n, strategy in enumerate(STRATEGIES)]
FITTING = next(each for each in ENDED if each.fits)


def test_a_trial_over_the_limit_is_no_part_of_the_front() -> None:
    assert FITTING.measurement is not None
    large = replace(FITTING.measurement, peak_device_bytes=LIMIT_BYTES + 1)
    history = History(row_of)

    assert len(history.of([replace(FITTING, measurement=large)]).measured(1.0)) == 0
    assert len(history.of([FITTING]).measured(1.0)) == 1


def test_energy_that_was_not_measured_is_that_of_typical_power() -> None:
    assert FITTING.measurement is not None
    unknown = replace(FITTING.measurement, energy_j_per_token=None)
    measured = History(row_of).of([replace(FITTING, measurement=unknown)]).measured(300.0)

    assert measured.energy[0] == 300.0 / unknown.tokens_per_second


def test_what_runs_is_told_from_what_was_tried_and_from_other_tables() -> None:
    running = Trial(number=1, strategy=STRATEGIES[3], state=TrialState.RUNNING)
    foreign = replace(running, strategy=Strategy(micro_batch_size=1999))
    past = History(row_of).of([ENDED[0], running, foreign])

    assert past.tried.tolist() == [0, 3]
    assert past.running.tolist() == [3]
    assert past.num_running == 2


def test_of_many_the_fastest_and_the_latest_are_witnesses() -> None:
    assert FITTING.measurement is not None
    trials = [
        replace(
            FITTING,
            number=number,
            measurement=replace(FITTING.measurement, tokens_per_second=1000.0 - number),
        )
        for number in range(300)
    ]
    failure = Failure(kind=FailureKind.LOST_NODE, message="")
    trials.append(replace(FITTING, measurement=None, failure=failure, state=TrialState.FAILED))
    told, num = History(row_of).of(trials).witnesses()

    assert num == 300
    assert [each.number for each in told] == [*range(64), *range(236, 300)]
