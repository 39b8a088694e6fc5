"""Grids of strategies that are measured whole, to judge a search by the best that there is.

    python tests/benchmarks/oracle_grid.py plan QUESTION PLANNED.jsonl

No GPU is needed: of the space in `oracle_grid.yaml`, which has the loss-neutral knobs that one GPU
can move in little time, every strategy is written down with its prediction, but those whose step
would take very long. `planned_trials.py run` measures them; the order is drawn with a fixed seed,
so that a sitting which is cut off leaves a fair sample.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from planned_trials import MODELS, planned_line

from autotune.machine.hardware import Hardware
from autotune.machine.hardware_spec import read_hardware
from autotune.plan.plan import ASSUMED_SOFTWARE
from autotune.predictor import AnalyticPredictor
from autotune.question.workload import Method, Workload, load_model_shape
from autotune.space.search_space import SearchSpace
from autotune.space.space_file import load_search_space

__all__ = ["GRIDS", "HARDWARE", "Grid", "read_grid"]

HARDWARE = "1xH100-80GB"
SPACE = Path(__file__).with_suffix(".yaml")
_HOST_MEMORY_GIB = 128

_LONGEST_STEP_S = 1.75
"""Predicted; what is slower would cost most of the time and is far from any front."""

_TIMED_STEPS = 2
_WARMUP_STEPS = 2
_TRIAL_OVERHEAD_S = 2.0
"""What one trial costs beside its steps, for the estimate that is printed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """One question, and which strategies of the space are asked about."""

    model: str
    """A preset, or a folder of `models/`."""
    method: Method
    seq_len: int
    global_batch_size: int
    without: Sequence[tuple[str, Sequence[object]]] = ()
    """Values of knobs that are left out."""

    def workload(self) -> Workload:
        """What is trained."""
        folder = MODELS / self.model
        shape = load_model_shape(str(folder) if folder.is_dir() else self.model)
        return Workload(
            model=shape,
            seq_len=self.seq_len,
            global_batch_size=self.global_batch_size,
            method=self.method,
        )


GRIDS = {
    "1.1B-1024": Grid(
        model="1.1B",
        method=Method.FULL,
        seq_len=1024,
        global_batch_size=16,
        without=(("micro_batch_size", (2,)),),
    ),
    "qwen3-0.6b-2048": Grid(
        model="qwen3-0.6b",
        method=Method.FULL,
        seq_len=2048,
        global_batch_size=8,
        without=(("zero_stage", (3,)), ("mlp_tiles", (4,)), ("checkpoint_interval", (3, 8))),
    ),
    "7B-lora-1024": Grid(
        model="7B",
        method=Method.LORA,
        seq_len=1024,
        global_batch_size=8,
        without=(("zero_stage", (1, 3)), ("mlp_tiles", (4,)), ("checkpoint_interval", (3, 8))),
    ),
}


def read_grid(name: str) -> tuple[Grid, Hardware, SearchSpace]:
    """A grid, the machine it was planned for, and the space it is cut from."""
    grid = GRIDS[name]
    hardware = read_hardware(HARDWARE, host_memory_gib=_HOST_MEMORY_GIB).host
    space = load_search_space(str(SPACE), grid.workload(), hardware, ASSUMED_SOFTWARE)
    return grid, hardware, space


def plan(name: str, out: Path) -> None:
    """Write down which strategies to run, and what is predicted of them."""
    grid, hardware, space = read_grid(name)
    predictor = AnalyticPredictor(space.workload, hardware)
    table = space.table
    predicted = predictor.predict_table(table)
    chosen = predicted.step_time_s <= _LONGEST_STEP_S
    for knob, values in grid.without:
        chosen &= ~table.has(knob, values)
    rows = np.flatnonzero(chosen).tolist()
    random.Random(0).shuffle(rows)
    with out.open("w", encoding="utf-8") as file:
        for row in rows:
            strategy = table.strategy(row)
            prediction = predictor.predict(strategy)
            line = planned_line(space.workload, HARDWARE, 1, strategy, prediction)
            line |= {"model": grid.model, "timed_steps": _TIMED_STEPS}
            file.write(json.dumps(line) + "\n")
    num_steps = _WARMUP_STEPS + _TIMED_STEPS
    seconds = float(np.sum(num_steps * predicted.step_time_s[rows] + _TRIAL_OVERHEAD_S))
    print(f"{name}: {len(rows)} of {len(table)} strategies, about {seconds / 60:.0f} minutes")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    planning = commands.add_parser("plan", help="list a grid with its predictions")
    planning.add_argument("question", choices=GRIDS)
    planning.add_argument("out", type=Path)
    arguments = parser.parse_args()
    plan(arguments.question, arguments.out)


if __name__ == "__main__":
    main()
