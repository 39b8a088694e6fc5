"""How far predictions are off after they learned from trials of another question.

    python tests/benchmarks/calibration_transfer.py results/h100-1.1B-full-8m \\
        results/h100-13B-lora-10m results/h100-techniques/techniques.jsonl

Each set of trials teaches each other one, as `autotune plan --calibrate-from` does it. Sets as
`calibration_accuracy.py` reads them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles

from calibration_accuracy import read_records

from autotune.learner import CalibratedPredictor
from autotune.trials.protocols import Predictor
from autotune.trials.trial import Trial


def errors(predictor: Predictor, trials: Sequence[Trial]) -> tuple[list[float], list[float]]:
    """Absolute relative errors of step time and of reserved memory."""
    times, memories = [], []
    for trial in trials:
        assert trial.measurement is not None
        said, seen = predictor.predict(trial.strategy), trial.measurement
        times.append(abs(said.step_time_s / seen.step_time_s - 1))
        memories.append(abs(said.peak_memory_bytes / seen.peak_memory_bytes - 1))
    return times, memories


def column(values: Sequence[float]) -> str:
    """Median and 95th percentile."""
    return f"{median(values):6.1%} {quantiles(values, n=20, method='inclusive')[-1]:6.1%}"


def main(paths: Sequence[Path]) -> None:
    """Print a table: learned from, predicted, errors before and after."""
    records = [record for path in paths for record in read_records(path)]
    print("median and 95th percentile of errors, without and with what was learned\n")
    print(f"{'learned from':28} {'predicted':28} {'step time':31} reserved")
    for name, source, learned in records:
        for other, prior, trials in records:
            if other == name:
                continue
            before = errors(prior, trials)
            after = errors(CalibratedPredictor(prior, learned, source=source), trials)
            columns = "  ".join(
                f"{column(old)} ->{column(new)}" for old, new in zip(before, after, strict=True)
            )
            print(f"{name[-27:]:28} {other[-27:]:28} {columns}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main([Path(argument) for argument in sys.argv[1:]])
