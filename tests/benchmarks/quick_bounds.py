"""How often the simulated allocator comes to more than the formula's upper bound.

    python tests/benchmarks/quick_bounds.py [--models 1.1B 3B 7B] [--kinds A100-40GB] [--ranks 4]

`autotune plan --quick` says that a strategy fits by the formula's upper bound. Each strategy of a
small grid (ZeRO stages, offloads, checkpointing, micro-batches) is predicted both ways on each
kind and number of devices; models are traced here, once each. Nothing is measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

from predictor_accuracy import HARDWARE

from autotune.knob_values import Offload
from autotune.machine.hardware import DEVICE_KINDS, GIB, Hardware
from autotune.predictor import AnalyticPredictor
from autotune.profile import script_of
from autotune.question.workload import Method, Workload, load_model_shape
from autotune.space.strategy import Strategy

MODELS = Path(__file__).parent / "models"


def strategies() -> Iterator[Strategy]:
    """The grid: weights go to the host under ZeRO-3 alone."""
    host = Offload.CPU
    for stage, optimizer, layers, batch in product((1, 2, 3), (False, True), (0, 1, 8), (1, 8)):
        for weights in (False, True) if stage == 3 else (False,):
            yield Strategy(
                zero_stage=stage,
                micro_batch_size=batch,
                checkpoint_interval=layers,
                offload_optimizer=host if optimizer else Offload.NONE,
                offload_param=host if weights else Offload.NONE,
            )


def compare(name: str, hardware: Hardware, seq_len: int) -> tuple[int, int]:
    """Print what exceeds the formula's bound; how many do, and how many were compared."""
    folder = MODELS / name
    shape = load_model_shape(str(folder) if folder.is_dir() else name)
    workload = Workload(
        model=shape,
        seq_len=seq_len,
        global_batch_size=8 * hardware.num_devices,
        method=Method.FULL,
    )
    formula, simulation = (
        AnalyticPredictor(workload, hardware),
        AnalyticPredictor(workload, hardware, script_of),
    )
    num_above = num = 0
    for strategy in strategies():
        quick, full = formula.predict(strategy), simulation.predict(strategy)
        if not full.is_simulated:
            continue
        num += 1
        most, said = quick.peak_memory_upper_bytes, full.peak_memory_bytes
        if said > most:
            num_above += 1
            print(
                f"{said / most - 1:+6.1%}  {said / GIB:6.2f} > {most / GIB:6.2f} GiB  {name} on "
                f"{hardware.num_devices} {hardware.device_kind}, {strategy}",
                flush=True,
            )
    return num_above, num


def main() -> None:
    """Print a line for each excess, then how many there were."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["1.1B", "3B", "7B"])
    parser.add_argument("--kinds", nargs="+", default=["A100-40GB", "H100-80GB"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--seq-len", type=int, default=1024)
    arguments = parser.parse_args()
    for name, kind, ranks in product(arguments.models, arguments.kinds, arguments.ranks):
        device = DEVICE_KINDS[kind]
        hardware = replace(
            HARDWARE,
            device_kind=device.name,
            num_devices=ranks,
            device_memory_bytes=device.memory_bytes,
        )
        above, num = compare(name, hardware, arguments.seq_len)
        print(f"{name}, {ranks} {kind}: {above} of {num} above the bound", flush=True)


if __name__ == "__main__":
    main()
