"""Where the wall time of one warm trial goes, from the fork to the device's memory being free.

    python tests/benchmarks/trial_start.py --model 1.1B > results/trial-start/h100.txt

Runs a few strategies several times, each run a trial as in a search, and prints seconds by phase:

    fork      the launcher's request until the rank's own code runs
    join      the device's context and the process group
    model     the model on its device, with its strategy
    engine    deepspeed.initialize
    first     the first optimizer step, in which kernels are loaded and compiled
    warm-up   the other steps that are not timed
    timed     the timed steps
    end       from the last step to the end of the rank's processes
    free      until the device's memory is free again

Then what was imported after the fork, though it could have been before. Last, how much of a
search's time passes outside trials: a study of a few trials through the real driver. Without a GPU
a tiny model takes the place of --model.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

from autotune.drivers.budget import Budget
from autotune.drivers.context import DriverContext
from autotune.drivers.local import LocalDriver
from autotune.launch import launcher as launcher_module
from autotune.launch.launcher import Launcher
from autotune.learner import CalibratedPredictor
from autotune.machine.hardware import DeviceType, Hardware, detect_hardware
from autotune.machine.software import detect_software
from autotune.predictor import AnalyticPredictor
from autotune.question.limits import Limits
from autotune.question.workload import Workload, load_model_shape
from autotune.samplers.predicted import PredictedSampler
from autotune.space.space_file import load_search_space
from autotune.space.strategy import Strategy
from autotune.study.record import TrialRecord
from autotune.study.study import Study
from autotune.trials.trial import Outcome, TrialSpec

PHASES = ("fork", "join", "model", "engine", "first", "warm-up", "timed", "end", "free")
_IMPORT = re.compile(r"^import time: +(\d+) \| +(\d+) \| (\S.*)$")
_LEAST_IMPORT_S = 0.005


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="1.1B")
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--global-batch", type=int, default=8, help="for each device")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--study-seconds", type=float, default=60.0, help="0 for none")
    given = parser.parse_args()
    hardware = detect_hardware()
    is_cuda = hardware.device_type is DeviceType.CUDA
    workload = Workload(
        model=load_model_shape(given.model if is_cuda else "tiny"),
        seq_len=given.seq_len if is_cuda else 64,
        global_batch_size=given.global_batch * hardware.num_devices,
    )
    # Has every rank write what it imports, and how long it takes, to its error log.
    os.environ["PYTHONPROFILEIMPORTTIME"] = "1"
    folder = Path(tempfile.mkdtemp())
    print(f"{workload.model.name}, {workload.seq_len} tokens, on {hardware}")
    with Launcher(hardware, model_type=workload.model.model_type, folder=folder) as launcher:
        print(f"libraries loaded in {launcher.start():.1f} s\n")
        _starts(launcher, workload, hardware, given.repeats)
        if given.study_seconds:
            _overhead(launcher, workload, hardware, given.study_seconds)


def _strategies(given: Workload, hardware: Hardware) -> Iterator[Mapping[str, Any]]:
    largest = given.global_batch_size // hardware.num_devices
    yield {"micro_batch_size": largest}
    yield {"micro_batch_size": max(1, largest // 4)}
    yield {"micro_batch_size": largest, "zero_stage": 1}
    yield {"micro_batch_size": largest, "zero_stage": 3, "checkpoint_interval": 1}
    if detect_software().has_liger and hardware.device_type is DeviceType.CUDA:
        yield {"micro_batch_size": largest, "fused_kernels": True}
    yield {"micro_batch_size": largest, "torch_compile": True}
    yield {"micro_batch_size": largest, "zero_stage": 2, "offload_optimizer": "cpu"}


def _starts(launcher: Launcher, workload: Workload, hardware: Hardware, repeats: int) -> None:
    """Seconds by phase: of the first run, and the median of those that find every cache filled."""
    imports: dict[str, float] = defaultdict(float)
    print(f"{'':52}{'all':>7}" + "".join(f"{phase:>8}" for phase in PHASES))
    for knobs in _strategies(workload, hardware):
        spec = TrialSpec(
            workload=workload, strategy=Strategy.from_dict(knobs), num_ranks=hardware.num_devices
        )
        runs = []
        for _ in range(repeats):
            folder = Path(tempfile.mkdtemp())
            outcome, phases = _phases(launcher, spec, folder)
            if outcome.measurement is None:
                print(f"{spec.strategy!s:52}{outcome.failure}")
                break
            runs.append(phases | {"all": outcome.duration_s})
            for name, seconds in _imported(folder / "rank0.err"):
                imports[name] = max(imports[name], seconds)
        else:
            for label, rows in (("first", runs[:1]), ("later", runs[1:])):
                cells = {key: median(run[key] for run in rows) for key in rows[0]} if rows else {}
                line = "".join(f"{cells[phase]:8.2f}" for phase in PHASES) if cells else ""
                print(f"{str(spec.strategy)[:44]:45}{label:7}{cells.get('all', 0):7.2f}{line}")
    print("\nimported after the fork, and how long it took (with what it imports in turn):")
    for name, seconds in sorted(imports.items(), key=lambda item: -item[1]):
        if seconds >= _LEAST_IMPORT_S:
            print(f"  {seconds:6.3f} s  {name}")


def _phases(launcher: Launcher, spec: TrialSpec, folder: Path) -> tuple[Outcome, dict[str, float]]:
    """One trial, and its seconds by phase as rank 0 saw them."""
    reached: dict[str, float] = {}
    steps: list[Mapping[str, Any]] = []

    def note(event: Mapping[str, Any]) -> None:
        reached.setdefault(str(event["event"]), float(event["at"]))
        if event["event"] == "step":
            steps.append(event)

    began = time.time()
    with _noted("wait_for_device", reached):
        outcome = launcher.run(spec, folder=folder, timeout_s=300.0, on_event=note)
    if outcome.measurement is None:
        return outcome, {}
    timed_s = sum(step["time_s"] for step in steps if step["is_timed"])
    others_s = sum(step["time_s"] for step in steps[1:] if not step["is_timed"])
    return outcome, {
        "fork": reached["started"] - began,
        "join": reached["joined"] - reached["started"],
        "model": reached["model"] - reached["joined"],
        "engine": reached["ready"] - reached["model"],
        "first": steps[0]["at"] - reached["ready"],
        "warm-up": others_s,
        "timed": timed_s,
        "end": reached["wait_for_device"] - steps[-1]["at"],
        "free": time.time() - reached["wait_for_device"],
    }


@contextmanager
def _noted(name: str, reached: dict[str, float]) -> Iterator[None]:
    """Note when the launcher calls a function of its own."""
    original: Callable[..., Any] = getattr(launcher_module, name)

    def noting(*args: Any, **kwargs: Any) -> Any:
        reached[name] = time.time()
        return original(*args, **kwargs)

    with mock.patch.object(launcher_module, name, noting):
        yield


def _imported(log: Path) -> Iterator[tuple[str, float]]:
    """What a rank imported itself, with seconds; only what nothing else imported."""
    for line in log.read_text(errors="replace").splitlines():
        found = _IMPORT.match(line)
        if found and not line.split("|")[2].startswith("  "):
            yield found[3].strip(), int(found[2]) / 1e6


class _Silent:
    """A progress that shows nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


class _Stopwatch:
    """A runner that keeps how long trials ran."""

    def __init__(self, runner: Launcher) -> None:
        self._runner = runner
        self.seconds = 0.0

    def run(self, spec: TrialSpec, **arguments: Any) -> Outcome:
        """As the runner that it wraps."""
        outcome = self._runner.run(spec, **arguments)
        self.seconds += outcome.duration_s
        return outcome


def _overhead(launcher: Launcher, workload: Workload, hardware: Hardware, seconds: float) -> None:
    """Share of a search's time that passes outside trials."""
    space = load_search_space("default", workload, hardware, detect_software())
    predictor = AnalyticPredictor(workload, hardware)
    limit = int(0.95 * hardware.device_memory_bytes)
    folder = Path(tempfile.mkdtemp())
    study = Study(
        TrialRecord(
            f"sqlite:///{folder / 'study.db'}",
            "overhead",
            owner="benchmark",
            choices=space.choices,
            memory_limit_bytes=limit,
        ),
        sampler=PredictedSampler(
            space.table,
            predictor,
            limits=Limits(device_bytes=limit, host_bytes=hardware.host_memory_bytes),
            min_gain=0.0,
        ),
        predictor=predictor,
        learn=CalibratedPredictor(predictor).learn,
        pruners=(),
    )

    def folder_of(number: int) -> Path:
        (folder / str(number)).mkdir()
        return folder / str(number)

    watch, began = _Stopwatch(launcher), time.monotonic()
    LocalDriver(
        watch,
        DriverContext(
            budget=Budget(seconds),
            spec_of=lambda trial: TrialSpec(
                workload=workload, strategy=trial.strategy, num_ranks=hardware.num_devices
            ),
            folder_of=folder_of,
            progress=_Silent(),
            is_interrupted=lambda: False,
            trial_timeout_s=120.0,
        ),
    ).run(study)
    whole = time.monotonic() - began
    num = sum(trial.was_launched for trial in study.trials)
    print(
        f"\na study of {num} trials in {whole:.1f} s: {watch.seconds:.1f} s in trials, "
        f"{1 - watch.seconds / whole:.1%} outside, "
        f"{(whole - watch.seconds) / max(1, num):.3f} s a trial"
    )


class _InTurn:
    """A sampler that proposes given strategies."""

    def __init__(self, strategies: list[Strategy]) -> None:
        self._strategies = strategies

    def propose(self, trials: Any) -> Strategy | None:
        """The next that was not tried."""
        tried = {trial.strategy for trial in trials}
        return next((s for s in self._strategies if s not in tried), None)


if __name__ == "__main__":
    main()
