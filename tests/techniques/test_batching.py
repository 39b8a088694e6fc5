"""Batches of samples with lengths of their own: what is learned does not depend on how they join.

Real engines in fp32, as in `test_loss_neutral.py`; packed sequences change what is learned.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import RunTrial

from autotune.launch.launcher import Launcher
from autotune.question.lengths import Lengths
from autotune.question.workload import Workload
from autotune.space.strategy import Strategy
from autotune.trials.trial import Measurement, TrialSpec

pytestmark = pytest.mark.slow

LENGTHS = Lengths.of([3, 5, 5, 8, 9, 12, 17, 40])
PADDED: dict[str, Any] = {"precision": "fp32", "micro_batch_size": 2}

SAME: tuple[dict[str, Any], ...] = (
    {"micro_batch_size": 1},
    {"micro_batch_size": 4},
    {"loss_tiles": 4},
    {"sequence_parallel_size": 2},
    {"batching": "padding_free"},
    {"batching": "padding_free", "micro_batch_size": 4, "zero_stage": 2},
    {"batching": "padding_free", "checkpoint_interval": 1},
    {"batching": "padding_free", "loss_tiles": 4},
    {"batching": "padding_free", "mlp_tiles": 4, "zero_stage": 3},
    {"batching": "padding_free", "tensor_parallel_size": 2},
)


def measured(run_trial: RunTrial, workload: Workload, knobs: dict[str, Any]) -> Measurement:
    outcome = run_trial(workload=workload, learning_rate=1e-3, timed_steps=3, **PADDED | knobs)
    assert outcome.failure is None, outcome.failure
    assert outcome.measurement is not None
    return outcome.measurement


@pytest.fixture(scope="module")
def natural(tiny: Workload) -> Workload:
    return replace(tiny, seq_len=32, global_batch_size=8, lengths=LENGTHS)


@pytest.fixture(scope="module")
def padded(run_trial: RunTrial, natural: Workload) -> Measurement:
    return measured(run_trial, natural, {})


@pytest.mark.parametrize("knobs", SAME, ids=str)
def test_losses_equal_those_of_padded_samples(
    run_trial: RunTrial, natural: Workload, padded: Measurement, knobs: dict[str, Any]
) -> None:
    found = measured(run_trial, natural, knobs)
    assert found.losses[:5] == pytest.approx(padded.losses[:5], rel=1e-4)
    assert found.samples_per_second is not None
    real = found.tokens_per_second * found.step_time_s
    assert real == pytest.approx(padded.tokens_per_second * padded.step_time_s)


def test_padding_is_told_apart(padded: Measurement) -> None:
    assert padded.padded_tokens_per_second is not None
    assert padded.padded_tokens_per_second > 1.05 * padded.tokens_per_second


def test_packed_sequences_have_no_padding(run_trial: RunTrial, natural: Workload) -> None:
    found = measured(run_trial, natural, {"batching": "packed"})
    assert found.padded_tokens_per_second == pytest.approx(found.tokens_per_second)
    assert found.tokens_per_second * found.step_time_s == pytest.approx(8 * 32)


def test_the_longest_samples_are_in_the_peak(run_trial: RunTrial, tiny: Workload) -> None:
    def peak(longest: int) -> int:
        # One sample in ten thousand: no timed step draws it.
        lengths = Lengths((8, longest), (9_999, 1))
        workload = replace(tiny, seq_len=512, global_batch_size=16, lengths=lengths)
        found = measured(run_trial, workload, {"micro_batch_size": 8})
        assert found.padded_tokens_per_second == pytest.approx(found.tokens_per_second, rel=0.2)
        return found.peak_reserved_bytes

    # Logits of 8 x 512 tokens in fp32, and what the loss makes of them.
    assert peak(512) > peak(16) + 4 * 8 * 500 * tiny.model.vocab_size


def test_a_confirming_run_evaluates_too(
    launcher: Launcher, natural: Workload, tmp_path: Path
) -> None:
    strategy = Strategy.from_dict(PADDED | {"batching": "padding_free"})
    spec = TrialSpec(workload=natural, strategy=strategy, num_ranks=2, timed_steps=1)
    confirming = spec.to_confirm()
    assert confirming.evaluates
    assert TrialSpec.from_dict(confirming.to_dict()) == confirming
    outcome = launcher.run(confirming, folder=tmp_path, timeout_s=240)
    assert outcome.failure is None, outcome.failure
