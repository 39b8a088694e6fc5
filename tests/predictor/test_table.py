"""Predictions of a table, against those of its strategies one by one."""

from __future__ import annotations

from dataclasses import fields, replace
from random import Random

import numpy as np
import pytest
from tiers import slow_but

from autotune.learner import CalibratedPredictor
from autotune.machine.hardware import DeviceType, Hardware
from autotune.machine.hardware_spec import read_hardware
from autotune.plan.plan import ASSUMED_SOFTWARE
from autotune.predictor import AnalyticPredictor
from autotune.predictor import table as predictor_table
from autotune.question.limits import Limits
from autotune.question.workload import Method, Workload, load_model_shape
from autotune.space.space_file import load_search_space
from autotune.space.strategy import Strategy
from autotune.space.strategy_table import StrategyTable
from autotune.trials.prediction_table import PredictionTable
from autotune.trials.protocols import Predictor
from autotune.trials.trial import Measurement, Trial, TrialState

FIELDS = [field.name for field in fields(PredictionTable)]

CPU = Hardware(
    device_type=DeviceType.CPU,
    device_kind="cpu",
    num_devices=4,
    device_memory_bytes=8 * 2**30,
    host_memory_bytes=32 * 2**30,
    flops_per_s=5e10,
    memory_bytes_per_s=1e10,
)

QUESTIONS = [
    ("70B", "8xH100-80GB", 8, Method.FULL),
    ("34B", "4xA100-40GB", 1, Method.FULL),
    ("350M", "2xRTX4090", 1, Method.FULL),
    ("3B", "1xV100-32GB", 1, Method.FULL),
    ("13B", "4xH100-80GB", 1, Method.LORA),
    ("7B", "2xRTX4090", 1, Method.QLORA),
    ("tiny", "", 1, Method.FULL),
]
"""Tied and own heads, grouped keys, plain and gated MLPs; stages of a pipeline up to 8."""


def asked(
    model: str, hardware: str, num_nodes: int, method: Method, *, space: str = "full"
) -> tuple[AnalyticPredictor, list[Strategy]]:
    """A predictor, and strategies of a space with every knob; there is a disk to offload to."""
    ranks = read_hardware(hardware, num_nodes=num_nodes).all_ranks if hardware else CPU
    machine = replace(ranks, nvme_path="/disk", nvme_free_bytes=10**13)
    workload = Workload(
        model=load_model_shape(model), seq_len=512, global_batch_size=256, method=method
    )
    found = load_search_space(space, workload, machine, ASSUMED_SOFTWARE)
    return AnalyticPredictor(workload, machine), list(found.strategies())


def differences(predictor: Predictor, strategies: list[Strategy]) -> list[str]:
    said = predictor.predict_table(StrategyTable.of(strategies))
    found = []
    for row, strategy in enumerate(strategies):
        alone = predictor.predict(strategy)
        for name in FIELDS:
            of_row, of_one = getattr(said, name)[row], getattr(alone, name)
            if of_row != pytest.approx(of_one, rel=1e-9, abs=0):
                found.append(f"{name} {of_row} != {of_one}: {strategy}")
    return found


@pytest.mark.parametrize(
    "question", slow_but(QUESTIONS[3:5], QUESTIONS), ids=lambda q: f"{q[0]}-{q[1]}-{q[3]}"
)
def test_a_table_is_predicted_as_its_strategies_are(
    question: tuple[str, str, int, Method],
) -> None:
    predictor, strategies = asked(*question)
    assert len(strategies) > 300
    assert differences(predictor, strategies) == []


def test_it_does_not_matter_where_a_table_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, strategies = asked("70B", "8xH100-80GB", 1, Method.FULL)
    table = StrategyTable.of(strategies[::4])
    at_once = predictor.predict_table(table)
    monkeypatch.setattr(predictor_table, "_BLOCK_ROWS", 37)
    for name in FIELDS:
        np.testing.assert_array_equal(
            getattr(predictor.predict_table(table), name), getattr(at_once, name)
        )


def test_an_empty_table_has_an_empty_prediction() -> None:
    predictor, _ = asked("tiny", "", 1, Method.FULL)
    nothing = predictor.predict_table(StrategyTable.of([]))
    assert len(nothing) == 0
    assert nothing.closest(3, Limits(device_bytes=1, host_bytes=1)) == []


def distorted(predictor: AnalyticPredictor, strategies: list[Strategy]) -> list[Trial]:
    """Trials of a machine that is slower, and needs more, than is predicted."""
    draw, trials = Random(0), []
    for number, strategy in enumerate(strategies):
        prediction = predictor.predict(strategy)
        seconds = prediction.step_time_s * draw.uniform(1.3, 1.5)
        peak = int(prediction.peak_memory_bytes * draw.uniform(1.05, 1.08))
        measurement = Measurement(
            tokens_per_second=1.0,
            step_times_s=(seconds,),
            peak_allocated_bytes=peak,
            peak_reserved_bytes=peak,
            peak_device_bytes=peak,
        )
        trials.append(
            Trial(
                number=number,
                strategy=strategy,
                state=TrialState.COMPLETE,
                measurement=measurement,
                duration_s=1.0,
            )
        )
    return trials


@pytest.mark.slow
@pytest.mark.parametrize("question", QUESTIONS[:5], ids=lambda q: f"{q[0]}-{q[1]}-{q[3]}")
def test_what_was_learned_corrects_a_table_as_it_does_its_strategies(
    question: tuple[str, str, int, Method],
) -> None:
    prior, strategies = asked(*question)
    calibrated = CalibratedPredictor(prior, distorted(prior, strategies[::25]))
    before, after = (
        predictor.predict_table(StrategyTable.of(strategies)) for predictor in (prior, calibrated)
    )
    assert np.mean(before.step_time_s != after.step_time_s) > 0.9
    assert np.mean(before.peak_memory_bytes != after.peak_memory_bytes) > 0.9
    assert differences(calibrated, strategies) == []


def test_limits_are_held_against_rows_as_against_one_strategy() -> None:
    predictor, strategies = asked("34B", "4xA100-40GB", 1, Method.FULL)
    said = predictor.predict_table(StrategyTable.of(strategies))
    alone = [predictor.predict(strategy) for strategy in strategies]
    limits = Limits(device_bytes=36 * 2**30, host_bytes=600 * 2**30, disk_bytes=3 * 10**11)
    missing = [one.missing_bytes(limits) for one in alone]
    assert said.missing_bytes(limits).tolist() == missing
    assert said.might_fit(limits).tolist() == [one.might_fit(limits) for one in alone]
    assert 0 < missing.count(0) < len(missing)
    closest = said.closest(len(missing), limits)
    assert [missing[row] for row in closest] == sorted(missing)


def test_techniques_of_rows_read_no_knob_that_they_do_not_depend_on() -> None:
    prior, strategies = asked("7B", "2xRTX4090", 1, Method.QLORA)
    found = StrategyTable.of(strategies).map(lambda row: tuple(sorted(prior.techniques(row))))

    # Else every row would be asked for alone.
    assert "micro_batch_size" not in found.knobs
    assert "reduce_bucket_size" not in found.knobs


def test_a_table_is_worked_out_once_for_a_predictor_and_for_one_that_simulates_too() -> None:
    predictor, strategies = asked("70B", "8xH100-80GB", 1, Method.FULL, space="default")
    table = StrategyTable.of(strategies[:2])
    said = predictor.predict_table(table)
    assert predictor.simulating(lambda *_: None).predict_table(table) is said


def test_an_uncertain_table_is_computed_again_by_a_predictor_that_may_trace() -> None:
    preset = load_model_shape("tiny")
    model = replace(preset, name="not a preset", config={"model_type": "llama", "unseen": 1})
    workload = Workload(model=model, seq_len=512, global_batch_size=32)
    counted = AnalyticPredictor(workload, CPU, traces=False)
    counted.predict_table(StrategyTable.of([Strategy()]))
    assert counted.uncertainty is not None
    assert counted.simulating(None)._latest is None
