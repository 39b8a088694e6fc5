"""How far reserved peaks are from measured ones: the simulated allocator's, and the formula's.

    python tests/benchmarks/reserved_accuracy.py [--method qlora] RECORDS.jsonl ...

Each line of RECORDS.jsonl is one trial on one H100 80GB, as `trial_recorder.py` writes it, of a
preset or of a folder in `tests/benchmarks/models`. Models are traced here, once each; what is
fused needs Liger to be installed. Nothing in the simulation is fitted to any trial.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from predictor_accuracy import HARDWARE, error_line

from autotune.predictor import AnalyticPredictor
from autotune.predictor.memory.peak import MemoryModel
from autotune.profile import script_of
from autotune.question.workload import Method, Workload, load_model_shape
from autotune.space.strategy import Strategy

MODELS = Path(__file__).parent / "models"


def read_rows(path: Path) -> Iterator[tuple[Workload, list[dict[str, Any]]]]:
    """Measured trials, by what they train."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if (record.get("outcome") or {}).get("measurement"):
            names = ("model", "method", "seq_len", "global_batch_size")
            groups[tuple(record[name] for name in names)].append(record)
    for (model, method, seq_len, batch), records in groups.items():
        folder = MODELS / model
        shape = load_model_shape(str(folder) if folder.is_dir() else model)
        yield (
            Workload(model=shape, seq_len=seq_len, global_batch_size=batch, method=Method(method)),
            records,
        )


def main(paths: Sequence[Path], method: Method | None) -> None:
    """Print each row, and the errors of Llamas and of all others."""
    errors: dict[str, list[float]] = defaultdict(list)
    num_counted = 0
    for path in paths:
        for workload, records in read_rows(path):
            if method not in (None, workload.method):
                continue
            counting = MemoryModel(workload, HARDWARE)
            simulating = AnalyticPredictor(workload, HARDWARE, script_of)
            for record in records:
                strategy = Strategy.from_dict(record["strategy"])
                counted, simulated = counting.peak(strategy), simulating.peak_memory(strategy)
                if simulated == counted:
                    num_counted += 1
                    continue
                measured = record["outcome"]["measurement"]
                reserved = measured["peak_reserved_bytes"]
                allocated = measured["peak_allocated_bytes"]
                family = "Llamas" if workload.model.model_type == "llama" else "others"
                error = simulated.expected_bytes / reserved - 1
                errors[f"{family}: simulated"].append(error)
                errors[f"{family}: counted"].append(counted.expected_bytes / reserved - 1)
                errors[f"{family}: allocated"].append(simulated.allocated_bytes / allocated - 1)
                print(f"{error:+6.1%}  {workload.model.name} {workload.method}  {strategy}")
    for name, found in sorted(errors.items()):
        print(f"{len(found):4} {error_line(f'{name:20}', found)}")
    print(f"{num_counted} have no script and stay counted")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", nargs="+", type=Path)
    parser.add_argument("--method", type=Method, help="leave out what trains otherwise")
    asked = parser.parse_args()
    main(asked.records, asked.method)
