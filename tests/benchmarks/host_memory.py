"""Host memory of what is offloaded: predicted before each run, against what the ranks held.

    python tests/benchmarks/host_memory.py results/host-memory/h100.jsonl [--seconds 300]

Prints one line a strategy. What was measured holds the host's side of the context as well, and
what ranks keep for themselves, as in the strategies that offload nothing. A run that was cut off
goes on where it stopped; with --seconds 0 it only prints what is there.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from trial_recorder import GIB, Case, Knobs, read_records, record

from autotune.question.workload import Method

_MICRO_BATCH = 4

_KNOBS: tuple[tuple[str, int, Knobs], ...] = (
    ("1.1B", 1, {"zero_stage": 1}),
    ("1.1B", 1, {"zero_stage": 1, "offload_optimizer": "cpu"}),
    ("1.1B", 4, {"zero_stage": 2, "offload_optimizer": "cpu"}),
    ("1.1B", 4, {"zero_stage": 2, "offload_optimizer": "cpu", "master_weights": "bf16"}),
    ("1.1B", 1, {"zero_stage": 3, "offload_optimizer": "cpu"}),
    ("1.1B", 1, {"zero_stage": 3, "offload_optimizer": "cpu", "offload_param": "cpu"}),
    ("1.1B", 1, {"zero_stage": 3, "offload_optimizer": "cpu", "offload_ratio": 0.5}),
    ("3B", 1, {"zero_stage": 2, "offload_optimizer": "cpu"}),
    ("3B", 1, {"zero_stage": 3, "offload_optimizer": "cpu", "master_weights": "bf16"}),
)


def _cases() -> Iterator[Case]:
    """Each strategy with so much accumulation, fewest steps."""
    for model, accumulation, knobs in _KNOBS:
        words = ", ".join(f"{name} {value}" for name, value in knobs.items())
        yield Case(
            key=f"{model}, accumulation {accumulation}: {words}",
            model=model,
            method=Method.FULL,
            seq_len=1024,
            global_batch_size=_MICRO_BATCH * accumulation,
            knobs={"micro_batch_size": _MICRO_BATCH, "checkpoint_interval": 1} | knobs,
            more={},
            timed_steps=2,
        )


def main() -> None:
    """Run what is missing, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=300.0)
    given = parser.parse_args()
    if given.seconds:
        record(_cases(), given.out, given.seconds)
    print(f"{'GiB of host memory':95}{'predicted':>10}{'measured':>10}{'off':>8}")
    errors = []
    for line in read_records(given.out):
        if "refused" in line:
            print(f"{line['key']:95}{line['refused']}")
            continue
        outcome, predicted = line["outcome"], line["prediction"]["host_memory_bytes"]
        measured = outcome["measurement"]
        if measured is None:
            print(f"{line['key']:95}{predicted / GIB:10.1f}  {outcome['failure']}")
            continue
        held = measured["host_memory_bytes"]
        off = f"{predicted / held - 1:8.1%}" if predicted and held else ""
        print(f"{line['key']:95}{predicted / GIB:10.1f}{held / GIB:10.1f}{off}")
        if off:
            errors.append(abs(predicted / held - 1))
    if errors:
        print(f"off: median {median(errors):.1%}, most {max(errors):.1%}")


if __name__ == "__main__":
    main()
