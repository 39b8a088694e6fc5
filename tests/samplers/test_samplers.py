"""One contract suite over every kind of sampler, and what those that learn are told."""

import logging
import sys
from importlib.util import find_spec

import optuna
import pytest

from autotune.errors import ConfigError
from autotune.machine.hardware import DeviceType, Hardware
from autotune.machine.software import Software
from autotune.predictor import AnalyticPredictor
from autotune.question.limits import Limits
from autotune.question.workload import Workload, load_model_shape
from autotune.samplers import OptunaSampler, PredictedSampler, SamplerKind
from autotune.space.search_space import Knob, SearchSpace
from autotune.space.strategy import Strategy
from autotune.trials.protocols import Sampler
from autotune.trials.trial import (
    Failure,
    FailureKind,
    Measurement,
    Prediction,
    Trial,
    TrialState,
)

GIB = 2**30
LIMIT_BYTES = 20 * GIB

GP = pytest.param(
    SamplerKind.GP,
    marks=[
        pytest.mark.slow,
        pytest.mark.skipif(find_spec("scipy") is None, reason="GPSampler needs scipy"),
    ],
)
LEARNING_KINDS = [SamplerKind.TPE, SamplerKind.NSGA2, GP]
OPTUNA_KINDS = [*LEARNING_KINDS, SamplerKind.RANDOM, SamplerKind.GRID]
KINDS = [SamplerKind.PREDICTED, *OPTUNA_KINDS]


def make_sampler(space: SearchSpace, kind: SamplerKind, seed: int = 0) -> Sampler:
    if kind is not SamplerKind.PREDICTED:
        return OptunaSampler(space, kind=kind, seed=seed)
    prior = AnalyticPredictor(space.workload, space.hardware)
    limits = Limits(device_bytes=LIMIT_BYTES, host_bytes=64 * GIB)
    return PredictedSampler(space.table, prior, limits=limits, min_gain=0.0)


def make_space(*knobs: Knob) -> SearchSpace:
    return SearchSpace(
        name="test",
        knobs=knobs,
        workload=Workload(model=load_model_shape("tiny"), seq_len=128, global_batch_size=16),
        hardware=Hardware(
            device_type=DeviceType.CUDA,
            device_kind="H100-80GB",
            num_devices=1,
            device_memory_bytes=LIMIT_BYTES,
            host_memory_bytes=64 * GIB,
            flops_per_s=1e15,
            memory_bytes_per_s=3e12,
        ),
        software=Software(versions={}, has_liger=True, has_compiler=True),
    )


def knob(name: str, *values: int | bool | str, **when: tuple[int | bool | str, ...]) -> Knob:
    return Knob(name=name, values=values, when=when)


# 3 and 12 never divide the batch of 16; Adafactor goes with stage 0 only, offload never.
SMALL_SPACE = make_space(
    knob("zero_stage", 0, 2, 3),
    knob("offload_optimizer", "none", "cpu", zero_stage=(2, 3)),
    knob("micro_batch_size", 1, 3, 4, 12),
    knob("optimizer", "adamw", "adafactor", offload_optimizer=("none",)),
)
NUM_SMALL = 12
"""Per micro-batch: stage 0 with two optimizers; stages 2 and 3 with and without offload."""

LARGE_SPACE = make_space(
    knob("zero_stage", 0, 1, 2, 3),
    knob("offload_optimizer", "none", "cpu", zero_stage=(1, 2, 3)),
    knob("micro_batch_size", 1, 2, 4, 8, 16),
    knob("checkpoint_interval", 0, 1, 2, 4),
    knob("fused_kernels", False, True),
)


def run(number: int, strategy: Strategy) -> Trial:
    """A smooth stand-in for training, with an out-of-memory region at large micro-batches."""
    kept = 1 / strategy.checkpoint_interval if strategy.checkpoint_interval else 1.5
    memory_gib = 4.0 + strategy.micro_batch_size * kept * (1.5 if strategy.fused_kernels else 2)
    peak_bytes = int(memory_gib * GIB)
    if peak_bytes > LIMIT_BYTES:
        return failed(number, strategy, FailureKind.DEVICE_OUT_OF_MEMORY, peak_bytes)
    speed = 1000.0 * strategy.micro_batch_size / (1 + strategy.micro_batch_size)
    return Trial(
        number=number,
        strategy=strategy,
        state=TrialState.COMPLETE,
        measurement=Measurement(
            tokens_per_second=speed * (0.5 if strategy.zero_stage == 3 else 1.0),
            step_times_s=(0.1,),
            peak_allocated_bytes=peak_bytes,
            peak_reserved_bytes=peak_bytes,
            peak_device_bytes=peak_bytes,
        ),
        duration_s=1.0,
        memory_limit_bytes=LIMIT_BYTES,
    )


def failed(
    number: int, strategy: Strategy, kind: FailureKind, predicted_bytes: int | None = None
) -> Trial:
    prediction = predicted_bytes and Prediction(
        peak_memory_bytes=predicted_bytes,
        peak_memory_lower_bytes=predicted_bytes,
        peak_memory_upper_bytes=predicted_bytes,
        step_time_s=0.1,
        tokens_per_second=1000.0,
    )
    return Trial(
        number=number,
        strategy=strategy,
        state=TrialState.FAILED,
        prediction=prediction or None,
        failure=Failure(kind=kind, message="planted"),
        duration_s=1.0,
        memory_limit_bytes=LIMIT_BYTES,
    )


def search(sampler: Sampler, num_trials: int, earlier: list[Trial] | None = None) -> list[Trial]:
    trials = list(earlier or [])
    for _ in range(num_trials):
        strategy = sampler.propose(trials)
        if strategy is None:
            break
        trials.append(run(len(trials), strategy))
    return trials


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_space_is_exhausted_exactly(kind: SamplerKind) -> None:
    trials = search(make_sampler(SMALL_SPACE, kind, 0), 100)
    assert len(trials) == NUM_SMALL
    assert {trial.strategy for trial in trials} == set(SMALL_SPACE.strategies())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_proposed_is_possible_and_new(kind: SamplerKind) -> None:
    trials = search(make_sampler(LARGE_SPACE, kind, 3), 24)
    proposed = [trial.strategy for trial in trials]
    assert len(set(proposed)) == 24
    assert set(proposed) <= set(LARGE_SPACE.strategies())


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_proposes_the_same_sequence(kind: SamplerKind) -> None:
    first, second, other = (
        [trial.strategy for trial in search(make_sampler(LARGE_SPACE, kind, s), 14)]
        for s in (5, 5, 6)
    )
    assert first == second
    # What follows from predictions alone has nothing to draw.
    assert (first == other) == (kind is SamplerKind.PREDICTED)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_search_repeats_nothing(kind: SamplerKind) -> None:
    earlier = search(make_sampler(LARGE_SPACE, kind, 1), 14)
    resumed = make_sampler(LARGE_SPACE, kind, 1)
    trials = search(resumed, 6, earlier)
    assert len({trial.strategy for trial in trials}) == 20


@pytest.mark.parametrize("kind", KINDS)
def test_running_and_failed_strategies_count_as_tried(kind: SamplerKind) -> None:
    strategies = list(SMALL_SPACE.strategies())
    trials = [
        Trial(number=0, strategy=strategies[0], state=TrialState.RUNNING),
        failed(1, strategies[1], FailureKind.CRASH),
        failed(2, strategies[2], FailureKind.COMMUNICATION),
        *(run(number, strategies[number]) for number in range(3, NUM_SMALL - 1)),
    ]
    sampler = make_sampler(SMALL_SPACE, kind, 0)
    assert sampler.propose(trials) == strategies[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_ending_is_taken_in(kind: SamplerKind) -> None:
    sampler = make_sampler(LARGE_SPACE, kind, 0)
    trials: list[Trial] = []
    endings = [
        lambda n, s: run(n, s),
        lambda n, s: failed(n, s, FailureKind.HOST_OUT_OF_MEMORY),
        lambda n, s: failed(n, s, FailureKind.DEVICE_OUT_OF_MEMORY, GIB),
        lambda n, s: failed(n, s, FailureKind.TIMEOUT),
        lambda n, s: failed(n, s, FailureKind.INTERRUPTED),
        lambda n, s: Trial(number=n, strategy=s, state=TrialState.PRUNED, reason="too large"),
        lambda n, s: Trial(
            number=n, strategy=s, state=TrialState.PRUNED, reason="slow", duration_s=1.0
        ),
    ]
    for number in range(21):
        strategy = sampler.propose(trials)
        assert strategy is not None
        trials.append(endings[number % len(endings)](number, strategy))
    assert len({trial.strategy for trial in trials}) == 21


@pytest.mark.parametrize("kind", KINDS)
def test_a_space_of_one_strategy_and_of_none_end(kind: SamplerKind) -> None:
    single = make_sampler(make_space(knob("zero_stage", 1)), kind)
    assert len(search(single, 5)) == 1
    empty = make_sampler(make_space(knob("micro_batch_size", 3)), kind)
    assert empty.propose([]) is None


@pytest.mark.parametrize("kind", LEARNING_KINDS)
def test_what_was_proposed_but_not_taken_may_be_drawn_again(kind: SamplerKind) -> None:
    space = make_space(knob("zero_stage", 1, 2))
    sampler = OptunaSampler(space, kind=kind, seed=0)
    for _ in range(12):
        assert sampler.propose([]) is not None
    running = sampler._study.get_trials(states=[optuna.trial.TrialState.RUNNING])
    assert len(running) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_trials_of_another_space_do_no_harm(kind: SamplerKind) -> None:
    foreign = [run(n, Strategy(zero_stage=1, micro_batch_size=16)) for n in range(2)]
    trials = search(make_sampler(SMALL_SPACE, kind, 0), 100, foreign)
    assert len(trials) == 2 + NUM_SMALL


def num_out_of_memory(kind: SamplerKind, seed: int) -> int:
    trials = search(make_sampler(LARGE_SPACE, kind, seed), 40)
    return sum(not trial.fits for trial in trials[12:])


@pytest.mark.parametrize("kind", [SamplerKind.TPE, SamplerKind.NSGA2])
def test_out_of_memory_is_learned(kind: SamplerKind) -> None:
    seeds = range(4)
    learned = sum(num_out_of_memory(kind, seed) for seed in seeds)
    blind = sum(num_out_of_memory(SamplerKind.RANDOM, seed) for seed in seeds)
    assert learned < 0.7 * blind


@pytest.mark.parametrize("kind", LEARNING_KINDS)
def test_earlier_sessions_are_learned_from(kind: SamplerKind) -> None:
    strategies = list(LARGE_SPACE.strategies())[::7]
    earlier = [run(number, strategy) for number, strategy in enumerate(strategies)]
    num_oom = 0
    for seed in range(2):
        trials = search(make_sampler(LARGE_SPACE, kind, seed), 8, earlier)
        num_oom += sum(not trial.fits for trial in trials[len(earlier) :])
    assert any(not trial.fits for trial in earlier)
    assert num_oom <= 5


def test_gp_without_scipy_names_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ConfigError, match="--sampler gp needs scipy"):
        make_sampler(SMALL_SPACE, SamplerKind.GP, 0)


def test_optuna_is_quiet_only_while_it_is_asked(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("optuna")
    level = logger.level
    search(make_sampler(SMALL_SPACE, SamplerKind.TPE, 0), 100)
    assert not caplog.records
    assert logger.level == level
    assert optuna.logging.get_verbosity() == level
