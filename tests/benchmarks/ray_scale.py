"""Cost of a search beside its trials: 64 at once under Ray Tune, and asking late in a study.

    python tests/benchmarks/ray_scale.py tune [--trials 1000] [--slots 64] [--nodes 64]
    python tests/benchmarks/ray_scale.py alone [--trials 1000] [--slots 64]
    python tests/benchmarks/ray_scale.py late [--trials 10000] [--sampler random]

`tune` drives a study through Ray Tune as `autotune search --ray` does: the same driver, searcher,
sampler, predictor, pruners and record; but a trial sleeps and makes its figures up. Its slots lie
on so many nodes of Ray's, each with a raylet of its own on this machine. `alone` asks and tells
the same study without Ray, whose processes take the cores from it, with so many trials open at any
time. `late` asks and tells at the end of a study of so many finished trials. The question is that
of a 7B model on hosts of eight H100; no GPU is needed. Times are of the asking thread.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil

from autotune.drivers.budget import Budget
from autotune.drivers.context import DriverContext
from autotune.learner import CalibratedPredictor
from autotune.machine.hardware_spec import read_hardware
from autotune.machine.software import Software
from autotune.predictor import AnalyticPredictor
from autotune.pruners import DominancePruner, PredictedMemoryPruner
from autotune.question.goal import Goal
from autotune.question.question import Question
from autotune.question.workload import Workload, load_model_shape
from autotune.samplers import OptunaSampler, PredictedSampler, SamplerKind
from autotune.space.search_space import SearchSpace
from autotune.space.space_file import load_search_space
from autotune.space.strategy import Strategy
from autotune.study.record import TrialRecord
from autotune.study.study import Study
from autotune.trials.protocols import Sampler
from autotune.trials.trial import Measurement, Outcome, Trial, TrialSpec

_STORE_BYTES = 80 * 2**20
"""Of a node: nearly the least that Ray takes."""

_PATIENCE = {
    # 64 nodes start their workers on the cores of one machine.
    "RAY_worker_register_timeout_seconds": "1200",
    "RAY_health_check_timeout_ms": "60000",
    "RAY_health_check_failure_threshold": "20",
}

_LARGE_SPACE = """
knobs:
  zero_stage: [0, 1, 2, 3]
  micro_batch_size: [1, 2, 4, 8, 16, 32, 64, 128]
  checkpoint_interval: [0, 1, 2, 4, 8]
  loss_tiles: [1, 4, 8, 16]
  mlp_tiles: [1, 2, 4]
  reduce_bucket_size: [1000000, 5000000, 10000000, 50000000, 100000000, 200000000, 500000000]
"""
"""Enough strategies for ten thousand trials."""


def _question(space_name: str = "default") -> tuple[Question, SearchSpace]:
    hardware = read_hardware("8xH100-80GB").host
    workload = Workload(model=load_model_shape("7B"), seq_len=1024, global_batch_size=1024)
    software = Software(versions={}, has_liger=True, has_compiler=True)
    space = load_search_space(space_name, workload, hardware, software)
    question = Question(
        workload=workload, hardware=hardware, space_name=space.name, space_text=space.text
    )
    return question, space


def _study(
    question: Question, space: SearchSpace, record: TrialRecord, kind: SamplerKind
) -> Study:
    predictor = AnalyticPredictor(question.workload, question.hardware)
    limits = question.limits
    sampler: Sampler
    if kind is SamplerKind.PREDICTED:
        sampler = PredictedSampler(
            space.table, predictor, limits=limits, goal=Goal.BALANCED, min_gain=0.0
        )
    else:
        sampler = OptunaSampler(space, kind=kind, seed=0)
    return Study(
        record,
        sampler=sampler,
        predictor=predictor,
        learn=CalibratedPredictor(predictor).learn,
        pruners=(
            PredictedMemoryPruner(
                limits.device_bytes, host_memory_bytes=limits.host_bytes, disk_bytes=0
            ),
            DominancePruner(),
        ),
    )


def _record(question: Question, space: SearchSpace, folder: Path) -> TrialRecord:
    reference = space.reference.to_dict()
    return TrialRecord(
        f"sqlite:///{folder / 'study.db'}",
        "scale",
        owner="scale",
        choices={
            knob: tuple(dict.fromkeys((*values, reference[knob])))
            for knob, values in space.choices.items()
        },
        memory_limit_bytes=question.memory_limit_bytes,
    )


def made_up(strategy: Mapping[str, Any], tokens_per_step: int) -> Outcome:
    """An end that depends on the strategy alone."""
    luck = zlib.crc32(json.dumps(strategy, sort_keys=True).encode()) / 2**32
    step_time_s, peak = 1.0 + 4 * luck, int((10 + 60 * (1 - luck)) * 2**30)
    measurement = Measurement(
        tokens_per_second=tokens_per_step / step_time_s,
        step_times_s=(step_time_s,) * 4,
        losses=(10.0,) * 6,
        peak_allocated_bytes=peak,
        peak_reserved_bytes=peak,
        peak_device_bytes=peak + 2**30,
    )
    return Outcome(measurement=measurement, duration_s=30.0)


class Timed:
    """A study that notes how long it takes to ask and to tell, and the process's memory."""

    def __init__(self, study: Study, stop_after: int) -> None:
        self._study = study
        self._stop_after = stop_after
        self.asked_s: list[float] = []
        self.told_s: list[float] = []
        self.resident_mib: dict[int, float] = {}
        self.end_reason: str | None = None

    @property
    def trials(self) -> tuple[Trial, ...]:
        return self._study.trials

    def ask(self, remaining_s: float) -> Trial | None:
        if len(self.asked_s) >= self._stop_after:
            return None
        started = time.thread_time()
        trial = self._study.ask(remaining_s)
        self.asked_s.append(time.thread_time() - started)
        self.end_reason = self._study.end_reason
        return trial

    def tell(self, trial: Trial, outcome: Outcome) -> Trial:
        started = time.thread_time()
        ended = self._study.tell(trial, outcome)
        self.told_s.append(time.thread_time() - started)
        if len(self.told_s) % 100 == 0:
            self.resident_mib[len(self.told_s)] = psutil.Process().memory_info().rss / 2**20
        return ended

    def report(self) -> None:
        for name, seconds in (("ask", self.asked_s), ("tell", self.told_s)):
            ninety_five = quantiles(seconds, n=20)[-1]
            print(
                f"{name}: median {1e3 * median(seconds):.1f} ms, 95th percentile "
                f"{1e3 * ninety_five:.1f} ms, longest {1e3 * max(seconds):.1f} ms "
                f"({len(seconds)} times)"
            )

    def report_all(self, num_strategies: int) -> None:
        """With what a trial costs, and the process's memory."""
        each_ms = 1e3 * (sum(self.asked_s) + sum(self.told_s)) / len(self.told_s)
        print(f"space: {num_strategies} strategies; ended: {self.end_reason or 'all were run'}")
        print(f"CPU time in ask and tell: {each_ms:.1f} ms a trial")
        self.report()
        memory = ", ".join(f"{n}: {mib:.0f}" for n, mib in self.resident_mib.items())
        print(f"resident memory of the process after so many trials, MiB: {memory}")


class Silent:
    """A progress that shows nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


class Slots:
    """Stands for a cluster of alike nodes, each with room for one trial."""

    def __init__(self, question: Question, num: int) -> None:
        self.hardware = question.hardware
        self.capacity = num
        self.placement = {"bundles": [{"CPU": 1.0}], "strategy": "STRICT_PACK"}

    def refresh(self, note: object) -> None:
        """Nothing changes."""

    def __str__(self) -> str:
        return f"{self.capacity} nodes"


def _start_ray(num_slots: int, num_nodes: int) -> Callable[[], None]:
    """A cluster of so many nodes that share the slots out; what ends it."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": num_slots if num_nodes == 1 else 0,
            "include_dashboard": False,
            "object_store_memory": _STORE_BYTES,
        },
    )
    for _ in range(num_nodes if num_nodes > 1 else 0):
        cluster.add_node(num_cpus=num_slots // num_nodes, object_store_memory=_STORE_BYTES)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    alive = sum(node["Alive"] for node in ray.nodes())
    print(f"Ray has {alive} nodes, the head among them; CPUs {ray.cluster_resources()['CPU']:.0f}")

    def end() -> None:
        ray.shutdown()
        cluster.shutdown()

    return end


def tune(
    num_trials: int, num_slots: int, num_nodes: int, seconds: float, kind: SamplerKind
) -> None:
    """A study through Ray Tune."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"} | _PATIENCE
    from ray.tune import PlacementGroupFactory, Trainable

    from autotune.cluster.messages import TrialOrder, TrialReport
    from autotune.drivers.ray_tune import RayTuneDriver

    class SleepingTrial(Trainable):  # type: ignore[misc]
        @classmethod
        def default_resource_request(cls, config: dict[str, str]) -> PlacementGroupFactory:
            return PlacementGroupFactory(**TrialOrder.from_config(config).placement)

        def setup(self, config: dict[str, str]) -> None:
            self._order = TrialOrder.from_config(config)

        def reset_config(self, new_config: dict[str, str]) -> bool:
            self._order = TrialOrder.from_config(new_config)
            return True

        def step(self) -> dict[str, Any]:
            time.sleep(seconds)
            spec = self._order.spec
            outcome = made_up(spec.strategy.to_dict(), spec.workload.tokens_per_step)
            return TrialReport(outcome=outcome).to_result()

    question, space = _question()
    end_ray = _start_ray(num_slots, num_nodes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        study = Timed(_study(question, space, _record(question, space, folder), kind), num_trials)

        def folder_of(number: int) -> Path:
            path = folder / "trials" / str(number)
            path.mkdir(parents=True, exist_ok=True)
            return path

        driver = RayTuneDriver(
            Slots(question, num_slots),  # type: ignore[arg-type]
            DriverContext(
                budget=Budget(10 * 3600.0),
                spec_of=lambda trial: TrialSpec(
                    workload=question.workload, strategy=trial.strategy, num_ranks=8
                ),
                folder_of=folder_of,
                progress=Silent(),  # type: ignore[arg-type]
                is_interrupted=lambda: False,
                trial_timeout_s=600.0,
            ),
            max_concurrent=None,
            study_name="scale",
            log=folder / "ray.log",
            trainable=SleepingTrial,
        )
        cpu_before, started = time.process_time(), time.perf_counter()
        driver.run(study)
        cpu_s, wall_s = time.process_time() - cpu_before, time.perf_counter() - started
    end_ray()
    num = len(study.told_s)
    print(f"{num} trials of {seconds:.0f} s, {num_slots} at once: {wall_s:.0f} s")
    print(f"CPU time of the driver's process, Ray in it: {1e3 * cpu_s / num:.1f} ms a trial")
    study.report_all(len(space.table))


def alone(num_trials: int, num_slots: int, kind: SamplerKind) -> None:
    """Ask and tell alone, with so many trials open; they end in any order."""
    question, space = _question()
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        record = _record(question, space, Path(name))
        study = Timed(_study(question, space, record, kind), num_trials)
        running: list[Trial] = []
        while True:
            while len(running) < num_slots and (trial := study.ask(3600.0)) is not None:
                running.append(trial)
            if not running:
                break
            ended = running.pop(draw.randrange(len(running)))
            strategy = ended.strategy.to_dict()
            study.tell(ended, made_up(strategy, question.workload.tokens_per_step))
    study.report_all(len(space.table))


def late(num_trials: int, kind: SamplerKind, num_asked: int = 40) -> None:
    """Ask and tell where so many trials have ended."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(_LARGE_SPACE)
        file.flush()
        question, space = _question(file.name)
    table = space.table
    predictor = AnalyticPredictor(question.workload, question.hardware)
    with tempfile.TemporaryDirectory() as name:
        record = _record(question, space, Path(name))
        step = max(1, len(table) // (num_trials + num_asked))
        print(f"filling the record with {num_trials} trials", flush=True)
        for row in range(0, num_trials * step, step):
            strategy: Strategy = table.strategy(row)
            outcome = made_up(strategy.to_dict(), question.workload.tokens_per_step)
            record.finish(record.start(strategy, predictor.predict(strategy)), outcome)
        started = time.perf_counter()
        study = Timed(_study(question, space, record, kind), num_asked)
        opened_s = time.perf_counter() - started
        while (trial := study.ask(3600.0)) is not None:
            study.tell(trial, made_up(trial.strategy.to_dict(), question.workload.tokens_per_step))
        print(f"{len(record.trials())} trials in a space of {len(table)} strategies")
        print(f"opened in {opened_s:.1f} s; ended: {study.end_reason or 'all were run'}")
        study.report()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("tune", "alone", "late"))
    parser.add_argument("--trials", type=int)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--sampler", type=SamplerKind, default=SamplerKind.PREDICTED)
    asked = parser.parse_args()
    print(
        f"python {' '.join(['tests/benchmarks/ray_scale.py', asked.part])}, asked: {vars(asked)}"
    )
    memory = psutil.virtual_memory().total / 2**30
    print(
        f"machine: {os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GiB, load "
        f"{os.getloadavg()[0]:.1f} before it began"
    )
    started = time.process_time()
    sum(range(10_000_000))
    print(f"this machine adds ten million numbers in {time.process_time() - started:.2f} s")
    if asked.part == "tune":
        tune(asked.trials or 1000, asked.slots, asked.nodes, asked.seconds, asked.sampler)
    elif asked.part == "alone":
        alone(asked.trials or 1000, asked.slots, asked.sampler)
    else:
        late(asked.trials or 10_000, asked.sampler)


if __name__ == "__main__":
    main()
