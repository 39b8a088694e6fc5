"""Long optimizer steps: their composed time against the time of the whole.

    python tests/benchmarks/composition.py --model 1.1B > results/composition/h100.txt

Runs each strategy as a search does, four micro-batches a step, and as a trial that leaves nothing
out, in turns, each a trial of its own. Prints tokens/s of both with 95 % intervals over the runs,
by how much they differ, the same of reserved memory, and how long a trial took. Without a GPU a
tiny model takes the place of --model.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from autotune.launch.launcher import Launcher
from autotune.machine.hardware import DeviceType, detect_hardware
from autotune.machine.software import detect_software
from autotune.question.workload import Workload, load_model_shape
from autotune.space.strategy import Strategy
from autotune.trials.interval import mean_interval
from autotune.trials.trial import Outcome, TrialSpec


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="1.1B")
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--accumulation", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="strategies that have this in their name")
    given = parser.parse_args()
    hardware, software = detect_hardware(), detect_software()
    is_cuda = hardware.device_type is DeviceType.CUDA
    model = load_model_shape(given.model if is_cuda else "tiny")
    has_liger = software.has_liger and is_cuda
    print(
        f"{model.name} on {hardware}; micro-batch {given.micro_batch}, {given.repeats} runs each"
    )
    print(
        f"{'strategy':44}{'accum.':>7}{'composed':>18}{'whole':>18}{'differ':>8}"
        f"{'memory':>8}{'s a trial':>14}"
    )
    differences = []
    with Launcher(hardware, model_type=model.model_type, folder=_folder()) as launcher:
        launcher.start()
        for accumulation in given.accumulation:
            for knobs in _strategies(has_liger=has_liger):
                workload = Workload(
                    model=model,
                    seq_len=given.seq_len if is_cuda else 128,
                    global_batch_size=accumulation * given.micro_batch * hardware.num_devices,
                )
                strategy = Strategy.from_dict({"micro_batch_size": given.micro_batch} | knobs)
                if given.only not in str(strategy):
                    continue
                spec = TrialSpec(
                    workload=workload, strategy=strategy, num_ranks=hardware.num_devices
                )
                differences += _compare(launcher, spec, accumulation, given.repeats)
    absolute = sorted(map(abs, differences))
    if absolute:
        print(f"differ: median {median(absolute):.2%}, most {absolute[-1]:.2%}")


def _strategies(*, has_liger: bool) -> Iterator[Mapping[str, Any]]:
    kernels = {"fused_kernels": True} if has_liger else {}
    for zero_stage in (0, 1, 2, 3):
        yield {"zero_stage": zero_stage} | kernels
    yield {"zero_stage": 0, "checkpoint_interval": 1} | kernels
    yield {"zero_stage": 2, "offload_optimizer": "cpu"} | kernels


def _compare(
    launcher: Launcher, spec: TrialSpec, accumulation: int, repeats: int
) -> Iterator[float]:
    """Both in turns; a line, and by how much they differ."""
    runs: dict[bool, list[Outcome]] = {True: [], False: []}
    for _ in range(repeats):
        for composes, outcomes in runs.items():
            run = launcher.run(replace(spec, composes=composes), folder=_folder(), timeout_s=300.0)
            if run.measurement is None:
                print(f"{str(spec.strategy)[:43]:44}{accumulation:7}  {run.failure}", flush=True)
                return
            outcomes.append(run)
    (fast, fast_words), (slow, slow_words) = (_speed(runs[key]) for key in (True, False))
    memory = _memory(runs[True]) / _memory(runs[False]) - 1
    seconds = " / ".join(
        f"{median(run.duration_s for run in runs[key]):.1f}" for key in (True, False)
    )
    print(
        f"{str(spec.strategy)[:43]:44}{accumulation:7}{fast_words:>18}{slow_words:>18}"
        f"{fast / slow - 1:8.2%}{memory:8.2%}{seconds:>14}",
        flush=True,
    )
    yield fast / slow - 1


def _speed(outcomes: list[Outcome]) -> tuple[float, str]:
    speeds = [run.measurement.tokens_per_second for run in outcomes if run.measurement]
    found = mean_interval(speeds)
    return found.mean, f"{found.mean:,.0f} ± {found.half_width:,.0f}"


def _memory(outcomes: list[Outcome]) -> float:
    return max(run.measurement.peak_reserved_bytes for run in outcomes if run.measurement)


def _folder() -> Path:
    return Path(tempfile.mkdtemp())


if __name__ == "__main__":
    main()
