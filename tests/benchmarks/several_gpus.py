"""Predictions against measurements on several GPUs of one host.

    python tests/benchmarks/several_gpus.py plan 7B 2xH100-80GB FOLDER [--number 40] \\
        [--but MEASURED.jsonl...] [--seed 0]
    python tests/benchmarks/several_gpus.py run FOLDER --part links|trials|search [--seconds 500]

`plan` needs no GPU: of the strategies in `several_gpus.yaml` that are expected to fit, and to take
no more than some seconds a step, it writes down, with their predictions, the fastest of each kind
and as many at random, none of what was measured before (`--but`); memory is simulated for these,
of fused ones where Liger is installed.
`run` measures on all GPUs of this host, one part a call: the links, the planned trials (it goes on
where it stopped), and a search of 13B. `planned_trials.py report` holds predicted against
measured.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from planned_trials import cases, planned_line
from trial_recorder import read_records, record

from autotune.machine.hardware_spec import read_hardware
from autotune.plan.plan import ASSUMED_SOFTWARE, Candidate, make_plan
from autotune.predictor import AnalyticPredictor
from autotune.profile import script_of
from autotune.question.question import Question
from autotune.question.workload import Workload, load_model_shape
from autotune.space.space_file import load_search_space
from autotune.space.strategy import Strategy

SPACE = Path(__file__).with_suffix(".yaml")
SEQ_LEN = 2048
SAMPLES_OF_A_DEVICE = 4
_LONGEST_STEP_S = 4.0
"""Predicted; a trial that takes longer would leave no time for others."""


def choose(
    model: str, hardware: str, out: Path, number: int, seed: int, but: Sequence[Path]
) -> None:
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
    simulating = AnalyticPredictor(workload, spec.host, script_of)
    known = {
        Strategy.from_dict(line["strategy"])
        for path in but
        for line in read_records(path)
        if line["model"] == model
    }
    found = (
        candidate
        for candidate in plan.candidates
        if plan.fits(candidate)
        and candidate.prediction.step_time_s <= _LONGEST_STEP_S
        and candidate.strategy not in known
    )
    fitting = sorted(found, key=lambda c: -c.prediction.tokens_per_second)
    kinds = {_kind(candidate.strategy) for candidate in fitting}
    best: dict[tuple[object, ...], Candidate] = {}
    for candidate in fitting:
        if len(best) == min(number // 2, len(kinds)):
            break
        if _kind(candidate.strategy) not in best:
            closer = _simulated(candidate, simulating)
            if plan.fits(closer):
                best[_kind(candidate.strategy)] = closer
    taken = [candidate.strategy for candidate in best.values()]
    rest = [candidate for candidate in fitting if candidate.strategy not in taken]
    closer_rest = (
        _simulated(candidate, simulating)
        for candidate in random.Random(seed).sample(rest, len(rest))
    )
    drawn = list(islice(filter(plan.fits, closer_rest), number - len(best)))
    # In turn, so that what is cut off by the clock is of both.
    chosen = [pair for pairs in zip(best.values(), drawn, strict=False) for pair in pairs]
    chosen += [*best.values()][len(drawn) :] + drawn[len(best) :]
    with out.open("w", encoding="utf-8") as file:
        for candidate in chosen:
            line = planned_line(
                workload,
                hardware,
                spec.host.num_devices,
                candidate.strategy,
                candidate.prediction,
            )
            line["chosen"] = "predicted best" if candidate in best.values() else "at random"
            file.write(json.dumps(line) + "\n")
    print(
        f"{len(plan.candidates)} strategies, {len(fitting)} expected to fit, {len(chosen)} chosen"
    )


def _simulated(candidate: Candidate, predictor: AnalyticPredictor) -> Candidate:
    """The same, with what its allocations come to."""
    prediction = predictor.predict(candidate.strategy)
    return Candidate(strategy=candidate.strategy, prediction=prediction)


def _kind(strategy: Strategy) -> tuple[object, ...]:
    return (
        strategy.zero_stage,
        strategy.tensor_parallel_size,
        strategy.pipeline_parallel_size,
        strategy.sequence_parallel_size,
        strategy.checkpoint_interval,
        strategy.master_weights,
    )


def run(folder: Path, part: str, seconds: float) -> None:
    """Measure one part on all GPUs of this host."""
    # Multicast needs rights on the host that a container has not.
    os.environ["NCCL_NVLS_ENABLE"] = "0"
    here = Path(__file__).parent
    if part == "links":
        command = [sys.executable, str(here / "link_rates.py"), str(folder / "links.jsonl")]
        subprocess.run(command, check=True)
        doctor = [sys.executable, "-m", "autotune", "doctor", "--measure"]
        with (folder / "doctor.txt").open("w", encoding="utf-8") as file:
            subprocess.run(doctor, check=False, stdout=file, stderr=subprocess.STDOUT)
    elif part == "trials":
        for planned in sorted(folder.glob("planned-*.jsonl")):
            out = planned.with_name(planned.name.replace("planned", "measured"))
            record(cases(planned), out, seconds)
    else:
        question = ["--model", "13B", "--seq-len", str(SEQ_LEN), "--global-batch", "8"]
        limits = ["--budget", f"{seconds:.0f}s", "--out", str(folder / "search-13B")]
        command = [sys.executable, "-m", "autotune", "search", *question, *limits]
        subprocess.run(command, check=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    planning = commands.add_parser("plan", help="choose and predict, without a GPU")
    planning.add_argument("model")
    planning.add_argument("hardware")
    planning.add_argument("folder", type=Path)
    planning.add_argument("--number", type=int, default=40)
    planning.add_argument("--seed", type=int, default=0)
    planning.add_argument("--but", type=Path, nargs="*", default=())
    running = commands.add_parser("run", help="measure on this host")
    running.add_argument("folder", type=Path)
    running.add_argument("--part", choices=("links", "trials", "search"), required=True)
    running.add_argument("--seconds", type=float, default=500.0)
    arguments = parser.parse_args()
    if arguments.command == "plan":
        out = arguments.folder / f"planned-{arguments.model}-{arguments.hardware}.jsonl"
        choose(
            arguments.model,
            arguments.hardware,
            out,
            arguments.number,
            arguments.seed,
            arguments.but,
        )
    else:
        run(arguments.folder, arguments.part, arguments.seconds)


if __name__ == "__main__":
    main()
