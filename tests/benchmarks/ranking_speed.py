"""Time and memory to list, predict and rank a million strategies.

    taskset -c 0,1 python tests/benchmarks/ranking_speed.py

Llama-2-70B on eight hosts of eight H100 80GB, 4,096 tokens a sample, 512 samples a step; the knobs
are below. Goes the way of `autotune plan`. The calibrated predictor has learned from as many
trials as stated, made up by distorting predictions. Memory is the peak resident set of the whole
process, Python and numpy included.
"""

from __future__ import annotations

import os
import platform
import random
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from autotune.learner import CalibratedPredictor
from autotune.machine.hardware_spec import read_hardware
from autotune.plan.plan import ASSUMED_SOFTWARE
from autotune.predictor import AnalyticPredictor
from autotune.question.question import Question
from autotune.question.workload import Workload, load_model_shape
from autotune.samplers import PredictedSampler
from autotune.space.search_space import SearchSpace
from autotune.space.space_file import parse_search_space
from autotune.space.strategy_table import StrategyTable
from autotune.study.pareto import front_rows
from autotune.trials.trial import Measurement, Trial, TrialState

NUM_STRATEGIES = 1_000_000
NUM_TRIALS = 40
NUM_SHOWN = 20
"""Rows of the front that become strategies with whole predictions."""

SPACE = """\
knobs:
  zero_stage: [0, 1, 2, 3]
  tensor_parallel_size: {values: [1, 2, 4, 8], when: {zero_stage: [0, 1, 2]}}
  pipeline_parallel_size: {values: [1, 2, 4, 8, 16], when: {zero_stage: [0, 1]}}
  sequence_parallel_size:
    {values: [1, 2, 4, 8], when: {tensor_parallel_size: [1], pipeline_parallel_size: [1]}}
  offload_optimizer: {values: [none, cpu], when: {zero_stage: [1, 2, 3]}}
  offload_ratio: {values: [1.0, 0.5], when: {zero_stage: [3], offload_optimizer: cpu}}
  offload_param: {values: [none, cpu], when: {zero_stage: [3], offload_optimizer: cpu}}
  micro_batch_size: [1, 2, 4, 8, 16, 32]
  checkpoint_interval: [0, 1, 2, 4, 8]
  checkpoint_scope: {values: [layer, attention, mlp], when: {checkpoint_interval: [1]}}
  offload_checkpoints: {values: [none, cpu], when: {checkpoint_interval: [1, 2, 4, 8]}}
  mlp_tiles: [1, 2, 4]
  loss_tiles: [1, 8]
  optimizer: {values: [adamw, adamw_8bit, lion, lion_8bit], when: {offload_optimizer: none}}
  master_weights: {values: [fp32, bf16], when: {zero_stage: [1, 2, 3]}}
  reduce_bucket_size: {values: [500000000, 50000000], when: {zero_stage: [1, 2, 3]}}
  overlap_comm: {values: [true, false], when: {zero_stage: [2, 3]}}
  zero_hpz_partition_size: {values: [1, 8], when: {zero_stage: [3]}}
  fused_kernels: {values: [false, true], when: {loss_tiles: [1]}}
  attention: [sdpa, flash_attention_2]
"""


@contextmanager
def timed(what: str) -> Iterator[None]:
    began, began_cpu = time.perf_counter(), time.process_time()
    yield
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
    print(f"{what:<50} {wall_s:7.2f} s  {cpu_s:7.2f} s")


def made_up(prior: AnalyticPredictor, table: StrategyTable) -> list[Trial]:
    """Trials that took longer, and more memory, than predicted, by what a seed says."""
    draw, trials = random.Random(0), []
    for number in range(NUM_TRIALS):
        strategy = table.strategy(draw.randrange(len(table)))
        predicted = prior.predict(strategy)
        peak = int(predicted.peak_memory_bytes * draw.uniform(1.04, 1.08))
        seconds = predicted.step_time_s * draw.uniform(1.2, 1.4)
        measurement = Measurement(
            tokens_per_second=predicted.tokens_per_second,
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


def rank(question: Question, space: SearchSpace) -> tuple[AnalyticPredictor, StrategyTable]:
    """As `autotune plan` does, each part timed."""
    with timed("list what is possible"):
        listed = space.table
    # As many as are asked for, evenly from the whole.
    table = listed.take(np.linspace(0, len(listed) - 1, NUM_STRATEGIES).astype(int))
    prior = AnalyticPredictor(question.workload, question.hardware)
    with timed("predict"):
        predicted = prior.predict_table(table)
    with timed("front of what fits"):
        fits = np.flatnonzero(predicted.missing_bytes(question.limits) == 0)
        speeds, memories = predicted.tokens_per_second, predicted.peak_memory_bytes
        front = fits[front_rows(speeds[fits], memories[fits])]
    with timed(f"the first {NUM_SHOWN} of the front in full"):
        shown = [prior.predict(table.strategy(row)) for row in front[:NUM_SHOWN]]
    assert all(
        one.tokens_per_second == speeds[row] for one, row in zip(shown, front, strict=False)
    )
    print(f"{len(listed):,} strategies are possible, of which {len(table):,} were predicted;")
    print(f"{len(fits):,} fit, {len(front)} are on the front")
    return prior, table


def main() -> None:
    print(
        f"Python {platform.python_version()}, numpy {np.__version__}, {platform.machine()}, "
        f"{len(os.sched_getaffinity(0))} cores; load before: {os.getloadavg()[0]:.1f}"
    )
    print(f"{'':<50} {'wall':>9}  {'CPU':>9}")
    with timed("all of it, imports not included"):
        ranks = read_hardware("8xH100-80GB", num_nodes=8).all_ranks
        workload = Workload(model=load_model_shape("70B"), seq_len=4096, global_batch_size=512)
        space = parse_search_space(SPACE, "million.yaml", workload, ranks, ASSUMED_SOFTWARE)
        question = Question(
            workload=workload, hardware=ranks, space_name=space.name, space_text=space.text
        )
        prior, table = rank(question, space)
    report_memory("peak resident memory until here")

    with timed(f"learn from {NUM_TRIALS} trials"):
        calibrated = CalibratedPredictor(prior, made_up(prior, table))
    with timed("predict, calibrated"):
        calibrated.predict_table(table)
    report_memory("peak resident memory with that")
    with timed("begin to propose"):
        sampler = PredictedSampler(table, prior, limits=question.limits, min_gain=0)
    trials = made_up(prior, table)
    for num in (0, 1, 10, NUM_TRIALS):
        with timed(f"propose after {num} trials"):
            sampler.propose(trials[:num])
    report_memory("peak resident memory with that")


def report_memory(what: str) -> None:
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what:<50} {gib:7.2f} GiB")


if __name__ == "__main__":
    main()
