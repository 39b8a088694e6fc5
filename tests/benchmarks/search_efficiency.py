"""How many trials a search needs to find what an exhaustive one found, by sampler.

    python tests/benchmarks/search_efficiency.py run QUESTION MEASURED.jsonl RUNS.jsonl \\
        [--seeds 20] [--trials 60] [--samplers predicted,random]
    python tests/benchmarks/search_efficiency.py report RUNS.jsonl... [--png CURVES.png]

QUESTION is one of `oracle_grid.py`, MEASURED.jsonl what `planned_trials.py` measured of it. The
measured strategies are the space; trials are played back with noise (`tests/replay.py`).
Every sampler gets the same trials for the same strategies, and is spared what is predicted not to
fit, as in `autotune search`; DeepSpeed Autotuning's order is not.

Regret of throughput: by how much the fastest of the trials so far, as it was measured, is slower
than the fastest of all, both by the record. Regret of hypervolume: what the trials so far lack of
the area below the front of all, up to the memory limit. The prior is the predictor as it is; its
constants were fitted to `results/h100-*`, never to these grids.
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from deepspeed_order import DeepSpeedOrder
from oracle_grid import GRIDS, read_grid
from replay import Recorded, ReplayClock, ReplayRunner, read_recorded

from autotune.predictor import AnalyticPredictor
from autotune.question.goal import Goal
from autotune.question.limits import Limits
from autotune.samplers import OptunaSampler, PredictedSampler, SamplerKind
from autotune.samplers.improvement import Front, hypervolume
from autotune.space.search_space import SearchSpace
from autotune.space.strategy import Strategy
from autotune.space.strategy_table import StrategyTable
from autotune.trials.composition import composition_of
from autotune.trials.durations import TrialDurations
from autotune.trials.protocols import Sampler
from autotune.trials.trial import Trial, TrialSpec, TrialState

DEEPSPEED = "deepspeed"
SAMPLERS = (
    SamplerKind.PREDICTED,
    SamplerKind.TPE,
    SamplerKind.NSGA2,
    SamplerKind.GP,
    SamplerKind.RANDOM,
    DEEPSPEED,
)
_HEADROOM = 0.05
_NEAR_SPEED, _NEAR_AREA = 0.01, 0.02
_LEAST_DRAWN = 1e-3
"""Less regret is drawn as this."""


@dataclass(frozen=True, kw_only=True)
class MeasuredSpace(SearchSpace):
    """A search space of which only the strategies exist that were measured."""

    measured: frozenset[Strategy] = frozenset()

    @cached_property
    def table(self) -> StrategyTable:
        """Those that were measured, in the order of the whole."""
        whole = SearchSpace.table.func(self)  # type: ignore[attr-defined]
        rows = [row for row in range(len(whole)) if whole.strategy(row) in self.measured]
        table: StrategyTable = whole.take(np.array(rows))
        return table

    def conflict(self, strategy: Strategy) -> str | None:
        """As of the whole, and where it was not measured."""
        if strategy not in self.measured:
            return "not measured"
        return super().conflict(strategy)


class Oracle:
    """A grid and all that was measured of it."""

    def __init__(self, question: str, measured: Path) -> None:
        _, self.hardware, space = read_grid(question)
        recorded = {trial.strategy: trial for trial in read_recorded(measured)}
        values = {f.name: getattr(space, f.name) for f in fields(space)}
        self.space = MeasuredSpace(**values, measured=frozenset(recorded))
        table = self.space.table
        self.recorded = [recorded[table.strategy(row)] for row in range(len(table))]
        self.limit_bytes = int(self.hardware.device_memory_bytes * (1 - _HEADROOM))
        self.limits = Limits(
            device_bytes=self.limit_bytes, host_bytes=self.hardware.host_memory_bytes
        )
        self.prior = AnalyticPredictor(self.space.workload, self.hardware)
        predicted = self.prior.predict_table(table)
        self.is_expected_to_fit = predicted.missing_bytes(self.limits) == 0
        fitting = {t.strategy: self._figures(t) for t in self.recorded if self._fits(t)}
        self.figures = fitting
        self.best = max(speed for speed, _ in fitting.values())
        overhead = float(np.median(predicted.device_overhead_bytes))
        self.limit_of_area = self.limit_bytes - overhead
        self.area = self.area_of(list(fitting))

    def _fits(self, trial: Recorded) -> bool:
        measured = trial.outcome.measurement
        return (
            measured is not None
            and measured.num_alloc_retries == 0
            and measured.peak_device_bytes <= self.limit_bytes
        )

    def _figures(self, trial: Recorded) -> tuple[float, float]:
        measured = trial.outcome.measurement
        assert measured is not None
        speed = self.space.workload.tokens_per_step / measured.step_time_s
        return speed, float(measured.peak_memory_bytes)

    def front(self) -> list[Strategy]:
        """What fits and nothing else beats in both."""
        return [
            strategy
            for strategy, (speed, memory) in self.figures.items()
            if not any(
                s >= speed and m <= memory and (s, m) != (speed, memory)
                for s, m in self.figures.values()
            )
        ]

    def is_pruned(self, strategy: Strategy) -> bool:
        """Whether a search would never launch it."""
        row = self.space.table.find(strategy)
        return row is None or not self.is_expected_to_fit[row]

    def area_of(self, strategies: list[Strategy]) -> float:
        """Below the front of what fits of them."""
        figures = [self.figures[s] for s in strategies if s in self.figures]
        memory = np.array([m for _, m in figures])
        speed = np.array([s for s, _ in figures])
        return hypervolume(Front.of(memory, speed), self.limit_of_area)

    def sampler(self, name: str, seed: int) -> Sampler:
        """One of `SAMPLERS`."""
        if name == DEEPSPEED:
            return DeepSpeedOrder(self.space)
        if name != SamplerKind.PREDICTED:
            return OptunaSampler(self.space, kind=SamplerKind(name), seed=seed)
        durations = TrialDurations(
            composition_of=lambda strategy: composition_of(
                self.space.workload, strategy, self.hardware.num_devices
            )
        )
        return PredictedSampler(
            self.space.table,
            self.prior,
            limits=self.limits,
            goal=Goal.BALANCED,
            min_gain=0.01,
            durations=durations,
        )


def search(oracle: Oracle, name: str, seed: int, num_trials: int) -> dict[str, Any]:
    """One search to its end, or to a number of launched trials."""
    clock = ReplayClock()
    noise = zlib.crc32(f"{seed}".encode())
    runner = ReplayRunner(oracle.recorded, seed=noise, clock=clock, sleep=clock.sleep)
    sampler = oracle.sampler(name, seed)
    table, launched = oracle.space.table, 0
    trials: list[Trial] = []
    found: dict[str, list[float]] = {"speed": [], "area": [], "clock_s": []}
    asked_s = 0.0
    num_out_of_memory = 0
    while launched < num_trials:
        started = time.perf_counter()
        strategy = sampler.propose(trials)
        asked_s += time.perf_counter() - started
        if strategy is None:
            break
        row = table.find(strategy)
        if name != DEEPSPEED and not oracle.is_expected_to_fit[row]:
            prediction = oracle.prior.predict(strategy)
            trials.append(
                Trial(
                    number=len(trials),
                    strategy=strategy,
                    state=TrialState.PRUNED,
                    prediction=prediction,
                    reason="predicted not to fit",
                    memory_limit_bytes=oracle.limit_bytes,
                )
            )
            continue
        spec = TrialSpec(workload=oracle.space.workload, strategy=strategy, num_ranks=1)
        outcome = runner.run(spec, folder=Path(), timeout_s=300.0)
        launched += 1
        num_out_of_memory += bool(outcome.failure and outcome.failure.kind.is_out_of_memory)
        trials.append(
            Trial(
                number=len(trials),
                strategy=strategy,
                state=outcome.state,
                measurement=outcome.measurement,
                failure=outcome.failure,
                duration_s=outcome.duration_s,
                memory_limit_bytes=oracle.limit_bytes,
            )
        )
        fitting = [t for t in trials if t.fits and t.strategy in oracle.figures]
        speed = 0.0
        if fitting:
            fastest = max(fitting, key=_measured_speed)
            speed = oracle.figures[fastest.strategy][0]
        found["speed"].append(1 - speed / oracle.best)
        found["area"].append(1 - oracle.area_of([t.strategy for t in fitting]) / oracle.area)
        found["clock_s"].append(clock())
    return {
        "sampler": str(name),
        "seed": seed,
        "num_strategies": len(table),
        "end_reason": sampler.end_reason if launched < num_trials else None,
        "num_out_of_memory": num_out_of_memory,
        "num_front": len(front := oracle.front()),
        "num_front_pruned": sum(map(oracle.is_pruned, front)),
        "ask_ms": 1000 * asked_s / max(1, len(trials)),
        **found,
    }


def _measured_speed(trial: Trial) -> float:
    assert trial.measurement is not None
    return trial.measurement.tokens_per_second


def run(question: str, measured: Path, out: Path, args: argparse.Namespace) -> None:
    """Search with each sampler and seed that `out` does not hold yet."""
    oracle = Oracle(question, measured)
    done = {(r["sampler"], r["seed"]) for r in _read(out)} if out.exists() else set()
    wanted = args.samplers.split(",")
    with out.open("a", encoding="utf-8") as file:
        for name in wanted:
            for seed in range(args.seeds):
                if (name, seed) in done:
                    continue
                line = {"question": question} | search(oracle, name, seed, args.trials)
                file.write(json.dumps(_rounded(line)) + "\n")
                file.flush()
            print(f"{question}: {name} done", flush=True)


def _rounded(line: dict[str, Any]) -> dict[str, Any]:
    return {
        key: [round(v, 5) for v in value] if isinstance(value, list) else value
        for key, value in line.items()
    }


def _read(path: Path) -> Iterator[dict[str, Any]]:
    yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())


def report(paths: list[Path], png: Path | None) -> None:
    """Print a table of each question, and draw the curves."""
    runs = [line for path in paths for line in _read(path)]
    questions = list(dict.fromkeys(line["question"] for line in runs))
    shown = (4, 8, 12, 20, 40)
    numbers = "".join(f"{n:>7}" for n in shown)
    for question in questions:
        of_question = [line for line in runs if line["question"] == question]
        first = of_question[0]
        print(
            f"{question}: {first['num_strategies']} strategies measured; "
            f"{first['num_front']} on the front, {first['num_front_pruned']} of them pruned\n"
        )
        titles = ("throughput, after trials", "hypervolume, after trials")
        print(f"{'':34}regret of {titles[0]:<26} regret of {titles[1]:<25}")
        print(
            f"{'':10} {f'to {_NEAR_SPEED:.0%}':>10} {f'to {_NEAR_AREA:.0%}':>10} {numbers}  "
            f"{numbers}  ended    OOM   ask ms  seeds"
        )
        for name in dict.fromkeys(line["sampler"] for line in of_question):
            lines = [line for line in of_question if line["sampler"] == name]
            regrets = [
                "".join(f"{v:>7.1%}" for v in _at(lines, key, shown)) for key in ("speed", "area")
            ]
            ended = [len(line["speed"]) for line in lines if line["end_reason"]]
            num = sum(len(line["speed"]) for line in lines)
            share = sum(line["num_out_of_memory"] for line in lines) / max(1, num)
            asked = median(line["ask_ms"] for line in lines)
            print(
                f"{name:10} {_first(lines, 'speed', _NEAR_SPEED):>10} "
                f"{_first(lines, 'area', _NEAR_AREA):>10} {regrets[0]}  {regrets[1]}  "
                f"{median(ended) if ended else '-':>5}  {share:>5.1%}  {asked:>7.0f}  "
                f"{len(lines):>5}"
            )
        print()
    print(
        "Medians over seeds; in brackets the 80th percentile; -: not within the trials run.\n"
        "to 1%, to 2%: trials until no more of throughput, or hypervolume, is lacking for good.\n"
        "ended: trials after which a search ended by itself; what it had found is kept."
    )
    if png is not None:
        _draw(runs, questions, png)


def _first(lines: list[dict[str, Any]], key: str, near: float) -> str:
    """Trials until the regret is small enough for good."""
    firsts = sorted(_for_good(line[key], near) for line in lines)
    middle, late = (float(np.quantile(firsts, q, method="higher")) for q in (0.5, 0.8))
    return f"{_count(middle)} ({_count(late)})"


def _for_good(regrets: list[float], near: float) -> float:
    late = [n for n, regret in enumerate(regrets, start=1) if regret > near]
    first = late[-1] + 1 if late else 1
    return first if first <= len(regrets) else np.inf


def _count(number: float) -> str:
    return f"{number:.0f}" if np.isfinite(number) else "-"


def _at(lines: list[dict[str, Any]], key: str, places: tuple[int, ...]) -> list[float]:
    curves = [_padded(line[key], max(places)) for line in lines]
    return [median(curve[place - 1] for curve in curves) for place in places]


def _padded(values: list[float], num: int) -> list[float]:
    """What was found stays found when a search has ended."""
    return (values + values[-1:] * num)[:num]


def _draw(runs: list[dict[str, Any]], questions: list[str], png: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    num = max(len(line["speed"]) for line in runs)
    figure, axes = plt.subplots(
        2, len(questions), figsize=(4.6 * len(questions), 7), squeeze=False, sharex=True
    )
    names = list(dict.fromkeys(line["sampler"] for line in runs))
    rows: list[tuple[str, str, float]] = [
        ("speed", "regret of throughput", _NEAR_SPEED),
        ("area", "regret of hypervolume", _NEAR_AREA),
    ]
    draw_one: Callable[..., None] = _curves
    for column, question in enumerate(questions):
        for row, (key, words, near) in enumerate(rows):
            axis = axes[row][column]
            for name in names:
                lines = [r for r in runs if (r["question"], r["sampler"]) == (question, name)]
                if lines:
                    # What ended by itself keeps what it found; what was cut off is not known.
                    most = num if any(line["end_reason"] for line in lines) else 0
                    most = most or min(len(line[key]) for line in lines)
                    draw_one(axis, name, [_padded(line[key], most) for line in lines])
            axis.axhline(near, color="black", linewidth=0.7, linestyle=":")
            axis.set_yscale("log")
            axis.set_ylim(0.9 * _LEAST_DRAWN, 1)
            axis.set_title(question if row == 0 else "")
            axis.set_xlabel("trials" if row else "")
            axis.set_ylabel(words if column == 0 else "")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=3, fontsize=8)
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    figure.savefig(png, dpi=110)


def _curves(axis: Any, name: str, curves: list[list[float]]) -> None:
    """The median, and between which values half of the seeds are."""
    found = np.maximum(np.array(curves), _LEAST_DRAWN)
    trials = np.arange(1, found.shape[1] + 1)
    low, middle, high = np.quantile(found, (0.25, 0.5, 0.75), axis=0)
    is_ours = name == SamplerKind.PREDICTED
    (line,) = axis.plot(trials, middle, label=name, linewidth=2.2 if is_ours else 1.2)
    axis.fill_between(trials, low, high, alpha=0.15, color=line.get_color(), linewidth=0)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="search on the replay")
    running.add_argument("question", choices=GRIDS)
    running.add_argument("measured", type=Path)
    running.add_argument("out", type=Path)
    running.add_argument("--seeds", type=int, default=20)
    running.add_argument("--trials", type=int, default=60)
    running.add_argument("--samplers", default=",".join(map(str, SAMPLERS)))
    reporting = commands.add_parser("report", help="table and curves")
    reporting.add_argument("runs", type=Path, nargs="+")
    reporting.add_argument("--png", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments.question, arguments.measured, arguments.out, arguments)
    else:
        report(arguments.runs, arguments.png)


if __name__ == "__main__":
    main()
