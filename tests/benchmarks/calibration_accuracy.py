"""How far predictions are off before and after learning from five trials of the same question.

    python tests/benchmarks/calibration_accuracy.py results/h100-1.1B-full-8m \\
        results/h100-13B-lora-10m results/h100-techniques/techniques.jsonl

A folder is a study: the first five complete trials are learned from, all later ones are predicted.
A file is a table of techniques: as a study for each question in it that has enough trials. Prior
and calibration are those of the present code, not those that the records hold.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from statistics import median, quantiles

from predictor_accuracy import HARDWARE

from autotune.learner import CalibratedPredictor
from autotune.predictor import AnalyticPredictor, ScriptSource
from autotune.question.workload import Method, Workload, load_model_shape
from autotune.space.strategy import Strategy
from autotune.study.stored import read_study
from autotune.trials.protocols import Predictor
from autotune.trials.trial import Measurement, Trial, TrialState

NUM_LEARNED = 5
NUM_DRAWS = 40
LEAST_LATER = 5

Records = tuple[str, AnalyticPredictor, list[Trial]]


def read_records(path: Path, script_of: ScriptSource | None = None) -> Iterator[Records]:
    """The complete trials of each question, in the order in which they ran, and its prior."""
    if path.is_dir():
        with tempfile.TemporaryDirectory() as folder:
            # Opening a storage may write to it.
            copy = shutil.copytree(path, Path(folder) / path.name)
            study = read_study(copy, None)
        prior = AnalyticPredictor(study.workload, study.hardware, script_of)
        yield path.name, prior, [t for t in study.trials if t.state is TrialState.COMPLETE]
        return
    groups: dict[tuple[str, str, int, int], list[Trial]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        record = json.loads(line)
        measured = (record.get("outcome") or {}).get("measurement")
        if measured is None:
            continue
        names = ("model", "method", "seq_len", "global_batch_size")
        model, method, seq_len, batch = (record[name] for name in names)
        groups.setdefault((model, method, seq_len, batch), []).append(
            Trial(
                number=number,
                strategy=Strategy.from_dict(record["strategy"]),
                state=TrialState.COMPLETE,
                measurement=Measurement.from_dict(measured),
                duration_s=1.0,
            )
        )
    for (model, method, seq_len, batch), trials in groups.items():
        if len(trials) < NUM_LEARNED + LEAST_LATER:
            print(f"left out: {path.name}, {model} {method}: {len(trials)} trials")
            continue
        workload = Workload(
            model=load_model_shape(model),
            seq_len=seq_len,
            global_batch_size=batch,
            method=Method(method),
        )
        prior = AnalyticPredictor(workload, HARDWARE, script_of)
        yield f"{path.parent.name}, {model} {method}", prior, trials


class Errors:
    """Of predictions against measurements."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.memories: list[float] = []
        self.num_inside = 0
        self.num_times_inside = 0
        self.widths: list[float] = []
        self.time_widths: list[float] = []

    def add(self, predictor: Predictor, trials: Sequence[Trial]) -> None:
        """Predict each trial."""
        for trial in trials:
            assert trial.measurement is not None
            said, seen = predictor.predict(trial.strategy), trial.measurement
            self.times.append(abs(said.step_time_s / seen.step_time_s - 1))
            self.memories.append(abs(said.peak_memory_bytes / seen.peak_memory_bytes - 1))
            assert said.step_time_lower_s is not None
            assert said.step_time_upper_s is not None
            self.num_times_inside += (
                said.step_time_lower_s <= seen.step_time_s <= said.step_time_upper_s
            )
            self.time_widths.append(math.log(said.step_time_upper_s / said.step_time_lower_s))
            lower, upper = said.peak_memory_lower_bytes, said.peak_memory_upper_bytes
            self.num_inside += lower <= seen.peak_memory_bytes <= upper
            self.widths.append(math.log(upper / lower))

    def __str__(self) -> str:
        columns = []
        for errors, num_inside, widths in (
            (self.times, self.num_times_inside, self.time_widths),
            (self.memories, self.num_inside, self.widths),
        ):
            p95 = quantiles(errors, n=20, method="inclusive")[-1]
            inside, width = num_inside / len(errors), math.exp(median(widths))
            columns.append(f"{median(errors):6.1%} {p95:7.1%} {inside:7.0%} {width:6.2f}")
        return f"{columns[0]}  {columns[1]}  {len(self.times):5}"


def main(paths: Sequence[Path]) -> None:
    """Print a table: step time, reserved memory, and the interval of the latter."""
    print(
        f"$ python {Path(__file__).as_posix()} {' '.join(map(str, paths))}\n".replace(
            Path(__file__).as_posix(), "tests/benchmarks/calibration_accuracy.py"
        )
    )
    print("first: learned from the first five complete trials, later ones predicted.")
    print(f"drawn: from five drawn at random, all others predicted; {NUM_DRAWS} draws together.")
    print("inside: part of later trials in the interval; ratio: its upper end over its lower.\n")
    print(f"{'':40} {'step time':29}  {'reserved':29}")
    print(f"{'':40} {'median    95 %  inside  ratio  ' * 2}     n")
    slowest = 0.0
    for path in paths:
        for name, prior, trials in read_records(path):
            before, after = Errors(), Errors()
            later = trials[NUM_LEARNED:]
            calibrated = CalibratedPredictor(prior, trials[:NUM_LEARNED])
            before.add(prior, later)
            after.add(calibrated, later)
            print(f"{name + ', prior':40} {before}")
            print(f"{name + ', first':40} {after}")
            before, after = Errors(), Errors()
            num_worse, random = 0, Random(0)
            for _ in range(NUM_DRAWS):
                learned = random.sample(trials, NUM_LEARNED)
                others = [trial for trial in trials if trial not in learned]
                before.add(prior, others)
                after.add(CalibratedPredictor(prior, learned), others)
                new, old = (e.times[-len(others) :] for e in (after, before))
                num_worse += sum(new) > sum(old)
            print(f"{name + ', prior':40} {before}")
            print(f"{name + ', drawn':40} {after}")
            print(f"{'':40} mean error of step time worse in {num_worse} of {NUM_DRAWS} draws")
            started = time.perf_counter()
            whole = CalibratedPredictor(prior, trials)
            learning_s = time.perf_counter() - started
            started = time.perf_counter()
            for _ in range(20):
                for trial in trials:
                    whole.predict(trial.strategy)
            one_us = (time.perf_counter() - started) / 20 / len(trials) * 1e6
            slowest = max(slowest, one_us)
            print(
                f"{'':40} learning from {len(trials)}: {learning_s * 1e3:.0f} ms; "
                f"predict: {one_us:.0f} µs\n"
            )


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main([Path(argument) for argument in sys.argv[1:]])
