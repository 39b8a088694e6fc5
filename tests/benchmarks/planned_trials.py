"""Trials that were planned and predicted before they were run, and how that came out.

    python tests/benchmarks/planned_trials.py run PLANNED.jsonl OUT.jsonl [--seconds 540]
    python tests/benchmarks/planned_trials.py report OUT.jsonl

Each line of PLANNED.jsonl is a trial with its prediction (`unseen_points.py` and `several_gpus.py`
write such files, without a GPU). `run` measures them on this machine, and goes on where OUT.jsonl
stops.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from trial_recorder import GIB, Case, read_records, record

from autotune.strategy import Strategy
from autotune.trial import Prediction
from autotune.workload import Method, Workload

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


def report(out: Path) -> None:
    """Print predicted beside measured, and what was not measured."""
    lines = read_records(out)
    rows = [(line, measured) for line in lines if (measured := _measured(line))]
    errors: dict[str, list[float]] = {"allocated": [], "reserved": [], "step time": []}
    num_inside = {"reserved": 0, "step time": 0}
    print("tokens/s, allocated and reserved GiB: predicted/measured\n")
    for line, measured in rows:
        before = line["predicted_before"]
        step_time_s = median(measured["step_times_s"])
        pairs = {
            "allocated": (before["peak_allocated_bytes"], measured["peak_allocated_bytes"]),
            "reserved": (before["peak_memory_bytes"], measured["peak_reserved_bytes"]),
            "step time": (before["step_time_s"], step_time_s),
        }
        for name, (predicted, real) in pairs.items():
            errors[name].append(predicted / real - 1)
        num_inside["reserved"] += (
            before["peak_memory_lower_bytes"]
            <= measured["peak_reserved_bytes"]
            <= before["peak_memory_upper_bytes"]
        )
        num_inside["step time"] += (
            (before["step_time_lower_s"] or 0) <= step_time_s <= (before["step_time_upper_s"] or 0)
        )
        print(
            f"{before['tokens_per_second']:7,.0f}/{measured['tokens_per_second']:7,.0f}  "
            f"{pairs['allocated'][0] / GIB:5.1f}/{pairs['allocated'][1] / GIB:5.1f}  "
            f"{pairs['reserved'][0] / GIB:5.1f}/{pairs['reserved'][1] / GIB:5.1f}  "
            f"{line['model']:13} {line['method']:5} x{line['seq_len']}  "
            f"{line.get('chosen', ''):14} {Strategy.from_dict(line['strategy'])}"
        )
    print()
    for line in lines:
        failure = line.get("outcome", {}).get("failure")
        if failure or "refused" in line:
            why = line.get("refused") or f"{failure['kind']}: {failure['message']}"
            print(f"not measured: {line['model']}, {Strategy.from_dict(line['strategy'])}: {why}")
    print(f"\n{len(rows)} trials measured")
    for name, values in errors.items():
        absolute = sorted(map(abs, values))
        p95 = absolute[min(len(absolute) - 1, int(0.95 * len(absolute)))]
        inside = f", inside the interval {num_inside[name]}" if name in num_inside else ""
        print(
            f"{name:10} median {median(absolute):.1%}, 95th percentile {p95:.1%}, "
            f"largest {absolute[-1]:.1%}, median signed {median(values):+.1%}{inside}"
        )
    if len({(line["model"], line["method"], line["seq_len"]) for line, _ in rows}) == 1:
        best = max(measured["tokens_per_second"] for _, measured in rows)
        first = max(rows, key=lambda row: row[0]["predicted_before"]["tokens_per_second"])
        print(f"regret of the predicted best: {1 - first[1]['tokens_per_second'] / best:.1%}")


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
    reporting.add_argument("out", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "run":
        record(cases(arguments.planned), arguments.out, arguments.seconds)
    else:
        report(arguments.out)


if __name__ == "__main__":
    main()
