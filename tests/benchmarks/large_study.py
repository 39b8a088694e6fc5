"""CPU time of whole commands on a large study: to read it, and to go on with it.

    python tests/benchmarks/large_study.py [--trials 2000] [--model tiny] [--space full]

Makes a study of so many finished trials, whose figures are made up, in the real storage; then runs
`autotune report`, `autotune report --json` and the same `autotune search` once more, each as a
process of its own. Of the search the time to its first line counts, and to its end with a budget
of ten seconds. Times are CPU seconds of the command and its children, and wall seconds.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from autotune.machine.hardware import detect_hardware
from autotune.machine.software import detect_software
from autotune.predictor import AnalyticPredictor
from autotune.question.question import Question
from autotune.question.workload import Workload, load_model_shape
from autotune.space.space_file import load_search_space
from autotune.study.folder import StudyFolder
from autotune.study.stored import open_record
from autotune.trials.trial import Measurement, Outcome

_SEQ_LEN = 512

_SCATTER = 0.1
"""Of the made-up figures around the predicted ones."""


def make_study(path: Path, *, model: str, space_name: str, num_trials: int) -> int:
    """Fill a study folder; how many trials it has."""
    hardware = detect_hardware()
    workload = Workload(model=load_model_shape(model), seq_len=_SEQ_LEN, global_batch_size=32)
    space = load_search_space(space_name, workload, hardware, detect_software())
    question = Question(
        workload=workload,
        hardware=hardware,
        space_name=space.name,
        space_text=space.text,
        headroom=0.05,
    )
    predictor = AnalyticPredictor(workload, hardware)
    rng = random.Random(0)
    rows = rng.sample(range(len(space.table)), min(num_trials, len(space.table)))
    folder = StudyFolder(path)
    folder.open(question)
    record = open_record(folder, space, question, None)
    for row in rows:
        strategy = space.table.strategy(row)
        prediction = predictor.predict(strategy)
        step_s = prediction.step_time_s * rng.lognormvariate(0, _SCATTER)
        peak = int(prediction.peak_memory_bytes * rng.lognormvariate(0, _SCATTER / 3))
        measurement = Measurement(
            tokens_per_second=workload.seq_len * workload.global_batch_size / step_s,
            step_times_s=(step_s, step_s * 1.01, step_s * 0.99),
            peak_allocated_bytes=peak,
            peak_reserved_bytes=peak,
            peak_device_bytes=peak,
            losses=(10.0, 9.9, 9.8),
        )
        trial = record.start(strategy, prediction)
        record.finish(trial, Outcome(measurement=measurement, duration_s=3 * step_s))
    record.close()
    folder.close()
    return len(rows)


def run(*arguments: str, folder: Path) -> str:
    """Run a command; its times in words."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "autotune", *arguments],
        cwd=folder,
        env=os.environ | {"DS_ACCELERATOR": "cpu", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        first_line = process.stdout.readline().rstrip()
        first_s = time.monotonic() - started
        num_lines = 1 + len(process.stdout.readlines())
    wall_s = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (
        f"exit {process.returncode}, first line after {first_s:.1f} s ({first_line[:60]}), "
        f"{num_lines} lines, {wall_s:.1f} s wall, {cpu_s:.1f} s CPU, "
        f"largest process so far {after.ru_maxrss / 2**10:.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--space", default="full")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.monotonic()
        num = make_study(
            folder / "study", model=asked.model, space_name=asked.space, num_trials=asked.trials
        )
        print(f"{num} trials made in {time.monotonic() - started:.1f} s", flush=True)
        print("report:", run("report", "study", folder=folder), flush=True)
        print("report --json:", run("report", "study", "--json", folder=folder), flush=True)
        search = ("--model", asked.model, "--seq-len", str(_SEQ_LEN), "--space", asked.space)
        search = ("search", *search, "--out", "study", "--budget", "10s")
        print("search:", run(*search, folder=folder), flush=True)


if __name__ == "__main__":
    main()
