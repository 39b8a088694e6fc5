"""How far predicted step times are off on one H100, and how many lie in their interval.

    python tests/benchmarks/step_time_accuracy.py POINTS.jsonl results/h100-trials/trials.jsonl \\
        results/h100-techniques/techniques.jsonl results/h100-points/architectures.jsonl \\
        results/h100-1.1B-full-8m results/h100-13B-lora-10m
    python tests/benchmarks/step_time_accuracy.py --rates results/doctor/1xH100-80GB.json \\
        results/oracle/measured-1.1B-1024.jsonl

POINTS.jsonl is a file as `predictor_accuracy.py` reads it; the others are records of trials, and
folders of studies. Predictions are those of the data sheet, or of the rates that `autotune doctor`
measured: they have learned from no trial.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median, quantiles

from predictor_accuracy import HARDWARE, read_point

from autotune.machine.hardware import Hardware
from autotune.machine.rates import Rates
from autotune.predictor import AnalyticPredictor
from autotune.question.workload import Method, Workload, load_model_shape
from autotune.space.strategy import Strategy
from autotune.study.stored import read_study
from autotune.trials.trial import TrialState

MODELS = Path(__file__).parent / "models"
MACHINE = replace(HARDWARE, supports_tf32=True, supports_fp8=True)

FITTED = """\
Fitted on all sets but `architectures`: attained parts of the peaks (matrix products 0.72, other
kernels 0.68, attention 0.50 of long samples), 8.1 µs of a launch, 0.49 ms of a checkpoint.
No constant was fitted to `architectures`, but three things were found missing by looking at them:
attention is faster for long samples, a fused loss reads the head in every piece, Gemma 3 has more
norms. Their forms come from sources, their constants from the other sets. Nothing was fitted to
`unseen` and to `measured-1.1B-1024`; the host's times under ZeRO-3 were chosen with trials on two
H200 in sight, and what `doctor` measures of a launch is converted by those alone."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One trial."""

    workload: Workload
    strategy: Strategy
    step_time_s: float


def read_rows(path: Path) -> Iterator[Row]:
    """The complete trials of a file or a folder that did not thrash."""
    if path.is_dir():
        yield from _read_study(path)
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if "arch" in record:
            workload, strategy = read_point(record)
            seconds = workload.tokens_per_step / record["tokens_per_second"]
            yield Row(workload=workload, strategy=strategy, step_time_s=seconds)
            continue
        measured = (record.get("outcome") or {}).get("measurement")
        if measured is None or measured["num_alloc_retries"]:
            continue
        folder = MODELS / record["model"]
        name = str(folder) if folder.is_dir() else record["model"]
        yield Row(
            workload=Workload(
                model=replace(load_model_shape(name), name=record["model"]),
                seq_len=record["seq_len"],
                global_batch_size=record["global_batch_size"],
                method=Method(record["method"]),
            ),
            strategy=Strategy.from_dict(record["strategy"]),
            step_time_s=median(measured["step_times_s"]),
        )


def _read_study(path: Path) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        # Opening a storage may write to it.
        study = read_study(shutil.copytree(path, Path(folder) / path.name), None)
    for trial in study.trials:
        if trial.state is TrialState.COMPLETE and trial.measurement is not None:
            seconds = trial.measurement.step_time_s
            yield Row(workload=study.workload, strategy=trial.strategy, step_time_s=seconds)


def summary(name: str, errors: Sequence[float], ratios: Sequence[float], num_inside: int) -> str:
    """Errors of one set, and its interval."""
    absolute = sorted(map(abs, errors))
    p95 = quantiles(absolute, n=20, method="inclusive")[-1]
    return (
        f"{name:20} {len(errors):4}  median {median(absolute):5.1%}  95th percentile {p95:6.1%}  "
        f"signed {median(errors):+6.1%}  inside {num_inside / len(errors):6.1%}  "
        f"upper over lower {median(ratios):.2f}"
    )


def main(paths: Sequence[Path], machine: Hardware) -> None:
    """Print each trial, then each set."""
    print("measured ms, error of the prediction, [interval], * where it is outside\n")
    lines = []
    for path in paths:
        errors, ratios, num_inside = [], [], 0
        for row in read_rows(path):
            said = AnalyticPredictor(row.workload, machine).predict(row.strategy)
            lower, upper = said.step_time_lower_s, said.step_time_upper_s
            assert lower is not None
            assert upper is not None
            is_inside = lower <= row.step_time_s <= upper
            errors.append(said.step_time_s / row.step_time_s - 1)
            ratios.append(upper / lower)
            num_inside += is_inside
            print(
                f"{row.step_time_s * 1e3:7.0f} {errors[-1]:+7.1%} "
                f"[{lower * 1e3:6.0f},{upper * 1e3:6.0f}]{' ' if is_inside else '*'} "
                f"{row.workload.model.name} x {row.workload.seq_len} {row.workload.method}, "
                f"{row.strategy}"
            )
        lines.append(summary(path.stem, errors, ratios, num_inside))
    print("", *lines, "", FITTED, sep="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path, help="records of trials")
    parser.add_argument("--rates", type=Path, help="as `autotune doctor --measure` keeps them")
    arguments = parser.parse_args()
    machine = MACHINE
    if arguments.rates:
        found = json.loads(arguments.rates.read_text(encoding="utf-8"))["rates"]
        machine = replace(MACHINE, rates=Rates(**found))
    main(arguments.paths, machine)
