"""What is predicted of samples with lengths of their own, beside what trials draw and measure."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch

from autotune.machine.hardware_spec import read_hardware
from autotune.predictor import AnalyticPredictor
from autotune.predictor.memory.micro_batch import computed_tokens, has_mask, longest_tokens
from autotune.question.lengths import Lengths
from autotune.question.workload import Workload, load_model_shape
from autotune.space.strategy import Strategy
from autotune.space.strategy_table import StrategyTable
from autotune.trials.trial import Prediction, TrialSpec
from autotune.worker.natural_batches import NaturalBatches

LENGTHS = Lengths.of([round(np.exp(4.5 + 0.8 * z)) for z in np.linspace(-2.5, 2.5, 400)])
H200 = read_hardware("1xH200").all_ranks
WORKLOAD = Workload(
    model=load_model_shape("1.1B"), seq_len=1024, global_batch_size=64, lengths=LENGTHS
)
BATCHINGS = ("padded", "padding_free", "packed")


def predicted(workload: Workload = WORKLOAD, **knobs: Any) -> Prediction:
    knobs = {"zero_stage": 0, "fused_kernels": True, "micro_batch_size": 8} | knobs
    return AnalyticPredictor(workload, H200, traces=False).predict(Strategy.from_dict(knobs))


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("size", [1, 8, 32])
def test_computed_tokens_are_those_that_trials_draw(batching: str, size: int) -> None:
    strategy = Strategy.from_dict({"batching": batching, "micro_batch_size": size})
    spec = TrialSpec(workload=WORKLOAD, strategy=strategy, num_ranks=1)
    batches = NaturalBatches(spec, data_rank=0, device=torch.device("cpu"))
    drawn = fmean(batches.fed(step).padded for step in range(40)) * size / 64
    assert computed_tokens(WORKLOAD, strategy) == pytest.approx(drawn, rel=0.04)
    longest = batches.longest()["input_ids"].numel()
    assert longest_tokens(WORKLOAD, strategy) == pytest.approx(longest, rel=0.3)
    assert longest_tokens(WORKLOAD, strategy) >= longest


def test_padding_costs_time_and_its_mask_costs_memory() -> None:
    padded = predicted(micro_batch_size=32)
    joined = predicted(micro_batch_size=32, batching="padding_free")
    assert joined.tokens_per_second > 1.5 * padded.tokens_per_second
    assert padded.peak_memory_bytes > joined.peak_memory_bytes


def test_memory_is_that_of_the_longest_samples() -> None:
    alike = predicted(replace(WORKLOAD, lengths=None, seq_len=LENGTHS.longest))
    joined = predicted(batching="padding_free")
    assert joined.peak_memory_bytes == pytest.approx(alike.peak_memory_bytes, rel=0.01)


def test_lengths_that_are_all_alike_change_nothing_without_a_mask() -> None:
    alike = replace(WORKLOAD, lengths=Lengths((1024,), (5,)))
    assert predicted(alike, batching="packed").step_time_s == pytest.approx(
        predicted(replace(WORKLOAD, lengths=None)).step_time_s
    )


def test_a_pipeline_and_ulysses_have_no_mask() -> None:
    for degree in ("pipeline_parallel_size", "sequence_parallel_size"):
        assert not has_mask(WORKLOAD, Strategy.from_dict({degree: 2}))
    assert has_mask(WORKLOAD, Strategy())


def test_a_table_is_predicted_as_its_strategies_are() -> None:
    strategies = [
        Strategy.from_dict({"zero_stage": 0, "micro_batch_size": size, "batching": batching})
        for size in (1, 8)
        for batching in BATCHINGS
    ]
    predictor = AnalyticPredictor(WORKLOAD, H200, traces=False)
    table = predictor.predict_table(StrategyTable.of(strategies))
    for row, strategy in enumerate(strategies):
        alone = predictor.predict(strategy)
        assert table.step_time_s[row] == pytest.approx(alone.step_time_s)
        assert table.tokens_per_second[row] == pytest.approx(alone.tokens_per_second)
        assert table.peak_memory_bytes[row] == alone.peak_memory_bytes
