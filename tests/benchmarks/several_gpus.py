"""Several GPUs of one host: are predictions right where ranks must talk?

    python tests/benchmarks/several_gpus.py choose 7B 2xH100-80GB PLANNED.jsonl [--number 40]
    python tests/benchmarks/several_gpus.py run PLANNED.jsonl OUT.jsonl [--seconds 540]
    python tests/benchmarks/several_gpus.py report OUT.jsonl

`choose` needs no GPU: of the strategies in `several_gpus.yaml` that are expected to fit it writes
down, with their predictions, the fastest of each kind and as many at random. `run` measures them
on the machine's GPUs, and goes on where OUT.jsonl stops. `report` holds one against the other.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from trial_recorder import GIB, Case, read_records, record

from autotune.hardware_spec import read_hardware
from autotune.plan import ASSUMED_SOFTWARE, Candidate, make_plan
from autotune.question import Question
from autotune.space_file import load_search_space
from autotune.strategy import Strategy
from autotune.workload import Method, Workload, load_model_shape

SPACE = Path(__file__).with_suffix(".yaml")
SEQ_LEN = 2048
SAMPLES_OF_A_DEVICE = 8


def choose(model: str, hardware: str, out: Path, number: int) -> None:
    """Write down which strategies to run, and what is predicted of them."""
    spec = read_hardware(hardware)
    workload = Workload(
        model=load_model_shape(model),
        seq_len=SEQ_LEN,
        global_batch_size=SAMPLES_OF_A_DEVICE * spec.host.num_devices,
    )
    space = load_search_space(str(SPACE), workload, spec.host, ASSUMED_SOFTWARE)
    question = Question(
        workload=workload,
        hardware=spec.host,
        space_name=space.name,
        space_text=space.text,
        headroom=0.05,
        seed=0,
    )
    plan = make_plan(question, spec, space)
    fitting = [candidate for candidate in plan.candidates if plan.fits(candidate)]
    fastest = sorted(fitting, key=lambda c: -c.prediction.tokens_per_second)
    first_of_kind: dict[tuple[object, ...], Candidate] = {}
    for candidate in fastest:
        first_of_kind.setdefault(_kind(candidate.strategy), candidate)
    best = list(first_of_kind.values())[: number // 2]
    rest = [candidate for candidate in fitting if candidate not in best]
    drawn = random.Random(0).sample(rest, min(number - len(best), len(rest)))
    # In turn, so that what is cut off by the clock is of both.
    chosen = [pair for pairs in zip(best, drawn, strict=False) for pair in pairs]
    chosen += best[len(drawn) :] + drawn[len(best) :]
    with out.open("w", encoding="utf-8") as file:
        for candidate in chosen:
            line = {
                "model": model,
                "hardware": hardware,
                "chosen": "predicted best" if candidate in best else "at random",
                "strategy": candidate.strategy.to_dict(),
                "predicted_before": asdict(candidate.prediction),
            }
            file.write(json.dumps(line) + "\n")
    print(
        f"{len(plan.candidates)} strategies, {len(fitting)} expected to fit, {len(chosen)} chosen"
    )


def _kind(strategy: Strategy) -> tuple[object, ...]:
    return (
        strategy.zero_stage,
        strategy.tensor_parallel_size,
        strategy.pipeline_parallel_size,
        strategy.sequence_parallel_size,
        strategy.checkpoint_interval,
        strategy.master_weights,
    )


def cases(planned: Path) -> Iterator[Case]:
    """What the recorder is to run."""
    for line in map(json.loads, planned.read_text(encoding="utf-8").splitlines()):
        yield Case(
            key=json.dumps([line["model"], line["strategy"]], sort_keys=True),
            model=line["model"],
            method=Method.FULL,
            seq_len=SEQ_LEN,
            global_batch_size=SAMPLES_OF_A_DEVICE,
            knobs=line["strategy"],
            more={"chosen": line["chosen"], "predicted_before": line["predicted_before"]},
        )


def report(out: Path) -> None:
    """Print predicted beside measured, and the regret of the predicted best."""
    rows = [(line, measured) for line in read_records(out) if (measured := _measured(line))]
    errors: dict[str, list[float]] = {"allocated": [], "reserved": [], "step time": []}
    print("tokens/s, allocated and reserved GiB: predicted/measured\n")
    for line, measured in rows:
        before = line["predicted_before"]
        pairs = {
            "allocated": (before["peak_allocated_bytes"], measured["peak_allocated_bytes"]),
            "reserved": (before["peak_memory_bytes"], measured["peak_reserved_bytes"]),
            "step time": (measured["tokens_per_second"], before["tokens_per_second"]),
        }
        for name, (predicted, real) in pairs.items():
            errors[name].append(predicted / real - 1)
        print(
            f"{before['tokens_per_second']:7,.0f}/{measured['tokens_per_second']:7,.0f}  "
            f"{pairs['allocated'][0] / GIB:5.1f}/{pairs['allocated'][1] / GIB:5.1f}  "
            f"{pairs['reserved'][0] / GIB:5.1f}/{pairs['reserved'][1] / GIB:5.1f}  "
            f"{line['chosen']:14} {Strategy.from_dict(line['strategy'])}"
        )
    print()
    for name, values in errors.items():
        absolute = sorted(map(abs, values))
        print(
            f"{name:10} median {median(absolute):.1%}, largest {absolute[-1]:.1%}, "
            f"median signed {median(values):+.1%}"
        )
    for line in read_records(out):
        failure = line.get("outcome", {}).get("failure")
        if failure or "refused" in line:
            why = line.get("refused") or f"{failure['kind']}: {failure['message']}"
            print(f"not measured: {Strategy.from_dict(line['strategy'])}: {why}")
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
    choosing = commands.add_parser("choose", help="predict, without a GPU")
    choosing.add_argument("model")
    choosing.add_argument("hardware")
    choosing.add_argument("out", type=Path)
    choosing.add_argument("--number", type=int, default=40)
    running = commands.add_parser("run", help="measure on this machine")
    running.add_argument("planned", type=Path)
    running.add_argument("out", type=Path)
    running.add_argument("--seconds", type=float, default=540.0)
    reporting = commands.add_parser("report", help="predicted against measured")
    reporting.add_argument("out", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "choose":
        choose(arguments.model, arguments.hardware, arguments.out, arguments.number)
    elif arguments.command == "run":
        record(cases(arguments.planned), arguments.out, arguments.seconds)
    else:
        report(arguments.out)


if __name__ == "__main__":
    main()
