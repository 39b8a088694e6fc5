"""Runs trials that were planned and predicted before, and reports how far off they were.

    python tests/benchmarks/planned_trials.py run PLANNED.jsonl OUT.jsonl [--seconds 540]
    python tests/benchmarks/planned_trials.py report OUT.jsonl ... [--again] [--rates RATES.json]

Each line of PLANNED.jsonl is a trial with its prediction (`unseen_points.py` and `several_gpus.py`
write such files, without a GPU). `run` measures them on this machine, and goes on where OUT.jsonl
stops. `report --again` holds the predictions of the present code beside those of the plan, and
what five trials teach about the others.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from calibration_accuracy import LEAST_LATER, NUM_DRAWS, NUM_LEARNED, Errors
from trial_recorder import GIB, Case, read_records, record

from autotune.learner import CalibratedPredictor
from autotune.machine.hardware_spec import read_hardware
from autotune.machine.rates import Rates
from autotune.predictor import AnalyticPredictor
from autotune.profile import script_of
from autotune.question.workload import Method, Workload, load_model_shape
from autotune.space.strategy import Strategy
from autotune.trials.trial import Measurement, Prediction, Trial, TrialState

MODELS = Path(__file__).parent / "models"


def planned_line(
    workload: Workload, hardware: str, num_devices: int, strategy: Strategy, prediction: Prediction
) -> dict[str, Any]:
    """One trial of a plan, as plain JSON values."""
    return {
        "model": workload.model.name,
        "method": str(workload.method),
        "seq_len": workload.seq_len,
        "samples_of_a_device": workload.global_batch_size // num_devices,
        "hardware": hardware,
        "strategy": strategy.to_dict(),
        "predicted_before": asdict(prediction),
    }


def cases(planned: Path) -> Iterator[Case]:
    """What the recorder is to run."""
    for line in map(json.loads, planned.read_text(encoding="utf-8").splitlines()):
        known = ("model", "method", "seq_len", "samples_of_a_device", "strategy")
        folder = MODELS / line["model"]
        yield Case(
            key=json.dumps([line[name] for name in known], sort_keys=True),
            model=str(folder) if folder.is_dir() else line["model"],
            method=Method(line["method"]),
            seq_len=line["seq_len"],
            global_batch_size=line["samples_of_a_device"],
            knobs=line["strategy"],
            more={name: value for name, value in line.items() if name not in known},
            **({"timed_steps": line["timed_steps"]} if "timed_steps" in line else {}),
        )


@dataclass(frozen=True, kw_only=True)
class Row:
    """A measured trial, and what was predicted of it."""

    line: dict[str, Any]
    measured: dict[str, Any]
    said: dict[str, Any]

    @property
    def step_time_s(self) -> float:
        """The median of the timed steps."""
        return median(self.measured["step_times_s"])


def report(paths: Sequence[Path], again: Again | None) -> None:
    """Print predicted beside measured, as it was planned and as it is predicted now."""
    lines = [line for path in paths for line in read_records(path)]
    found = [(line, measured) for line in lines if (measured := _measured(line))]
    before = [Row(line=one, measured=m, said=one["predicted_before"]) for one, m in found]
    _print_rows("as planned", before)
    for line in lines:
        failure = line.get("outcome", {}).get("failure")
        if failure or "refused" in line:
            why = line.get("refused") or f"{failure['kind']}: {failure['message']}"
            print(f"not measured: {line['model']}, {Strategy.from_dict(line['strategy'])}: {why}")
    if again:
        now = [
            Row(line=one, measured=m, said=asdict(again.predictor(one).predict(_strategy(one))))
            for one, m in found
        ]
        _print_rows(f"predicted again, by {again}", now)
        _print_calibrated(found, again)


def _print_rows(title: str, rows: Sequence[Row]) -> None:
    errors: dict[str, list[float]] = {"allocated": [], "reserved": [], "step time": []}
    num_inside = {"reserved": 0, "step time": 0}
    print(f"\n{title}: tokens/s, allocated and reserved GiB: predicted/measured\n")
    for row in rows:
        line, said, measured, step_time_s = row.line, row.said, row.measured, row.step_time_s
        pairs = {
            "allocated": (said["peak_allocated_bytes"], measured["peak_allocated_bytes"]),
            "reserved": (said["peak_memory_bytes"], measured["peak_reserved_bytes"]),
            "step time": (said["step_time_s"], step_time_s),
        }
        for name, (predicted, real) in pairs.items():
            errors[name].append(predicted / real - 1)
        reserved = measured["peak_reserved_bytes"]
        num_inside["reserved"] += (
            said["peak_memory_lower_bytes"] <= reserved <= said["peak_memory_upper_bytes"]
        )
        num_inside["step time"] += (
            (said["step_time_lower_s"] or 0) <= step_time_s <= (said["step_time_upper_s"] or 0)
        )
        print(
            f"{said['tokens_per_second']:7,.0f}/{measured['tokens_per_second']:7,.0f}  "
            f"{pairs['allocated'][0] / GIB:5.1f}/{pairs['allocated'][1] / GIB:5.1f}  "
            f"{pairs['reserved'][0] / GIB:5.1f}/{pairs['reserved'][1] / GIB:5.1f}  "
            f"{line['model']:4} {line['method']:4} x{line['seq_len']}  "
            f"{line.get('chosen', ''):14} {_strategy(line)}"
        )
    print(f"\n{len(rows)} trials measured")
    for name, values in errors.items():
        absolute = sorted(map(abs, values))
        p95 = absolute[min(len(absolute) - 1, int(0.95 * len(absolute)))]
        inside = f", inside the interval {num_inside[name]}" if name in num_inside else ""
        print(
            f"{name:10} median {median(absolute):.1%}, 95th percentile {p95:.1%}, "
            f"largest {absolute[-1]:.1%}, median signed {median(values):+.1%}{inside}"
        )
    for question in dict.fromkeys(_question(row.line) for row in rows):
        own = [row for row in rows if _question(row.line) == question]
        best = max(row.measured["tokens_per_second"] for row in own)
        first = max(own, key=lambda row: row.said["tokens_per_second"])
        regret = 1 - first.measured["tokens_per_second"] / best
        print(f"regret of the predicted best, {question[0]} {question[1]}: {regret:.1%}")


def _print_calibrated(found: Sequence[tuple[dict[str, Any], Any]], again: Again) -> None:
    """What five trials of a question teach about the others."""
    for question in dict.fromkeys(_question(line) for line, _ in found):
        own = [(line, measured) for line, measured in found if _question(line) == question]
        if len(own) < NUM_LEARNED + LEAST_LATER:
            continue
        trials = [
            Trial(
                number=number,
                strategy=_strategy(line),
                state=TrialState.COMPLETE,
                measurement=Measurement.from_dict(measured),
                duration_s=1.0,
            )
            for number, (line, measured) in enumerate(own)
        ]
        prior, random = again.predictor(own[0][0]), Random(0)
        print(f"\n{question[0]} {question[1]}, calibrated on {NUM_LEARNED} trials; of the others:")
        print(f"{'':24}{'step time: median    95 %  inside  ratio':44}reserved: the same  n")
        firsts = [list(range(NUM_LEARNED))]
        drawn = [random.sample(range(len(trials)), NUM_LEARNED) for _ in range(NUM_DRAWS)]
        for name, draws in (("the first", firsts), (f"drawn, {NUM_DRAWS} times", drawn)):
            before, after = Errors(), Errors()
            for places in draws:
                learned = [trials[place] for place in places]
                others = [trial for trial in trials if trial not in learned]
                before.add(prior, others)
                after.add(CalibratedPredictor(prior, learned), others)
            print(f"{name + ', prior':34}{before}")
            print(f"{name + ', calibrated':34}{after}")


def _strategy(line: dict[str, Any]) -> Strategy:
    return Strategy.from_dict(line["strategy"])


def _question(line: dict[str, Any]) -> tuple[str, str, int]:
    return line["model"], line["method"], line["seq_len"]


class Again:
    """Predictions by the code that is here, simulated where allocations are known.

    Args:
        rates: a file of measured rates; without it the data sheet of the device that measured.
    """

    def __init__(self, rates: Path | None) -> None:
        self._rates = rates
        self._predictors: dict[tuple[str, str, int], AnalyticPredictor] = {}

    def __str__(self) -> str:
        return f"the rates of {self._rates.name}" if self._rates else "the device's data sheet"

    def predictor(self, line: dict[str, Any]) -> AnalyticPredictor:
        """Of the question that a trial belongs to."""
        question = _question(line)
        if question not in self._predictors:
            num_devices = read_hardware(line["hardware"]).host.num_devices
            host = read_hardware(f"{num_devices}x{line['device_kind']}").host
            if self._rates:
                rates = json.loads(self._rates.read_text(encoding="utf-8"))["rates"]
                host = replace(host, rates=Rates(**rates))
            folder = MODELS / line["model"]
            workload = Workload(
                model=load_model_shape(str(folder) if folder.is_dir() else line["model"]),
                seq_len=line["seq_len"],
                global_batch_size=line["global_batch_size"],
                method=Method(line["method"]),
            )
            self._predictors[question] = AnalyticPredictor(workload, host, script_of)
        return self._predictors[question]


def _measured(line: dict[str, Any]) -> dict[str, Any] | None:
    measured: dict[str, Any] | None = line.get("outcome", {}).get("measurement")
    return measured


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="measure on this machine")
    running.add_argument("planned", type=Path)
    running.add_argument("out", type=Path)
    running.add_argument("--seconds", type=float, default=540.0)
    reporting = commands.add_parser("report", help="predicted against measured")
    reporting.add_argument("out", type=Path, nargs="+")
    reporting.add_argument("--again", action="store_true", help="also by the code that is here")
    reporting.add_argument("--rates", type=Path, help="measured rates for --again")
    arguments = parser.parse_args()
    if arguments.command == "run":
        record(cases(arguments.planned), arguments.out, arguments.seconds)
    else:
        report(arguments.out, Again(arguments.rates) if arguments.again else None)


if __name__ == "__main__":
    main()
