"""The sampler's posterior against the corrected predictor: which predicts later trials better?

    python tests/benchmarks/posterior_accuracy.py results/h100-1.1B-full-8m \\
        results/h100-13B-lora-10m results/h100-techniques/techniques.jsonl

Both learn from the same trials, as `calibration_accuracy.py` draws them; the posterior is of a
table of all strategies that were tried. It holds 95 % of a normal distribution.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import median, quantiles

import numpy as np
from calibration_accuracy import NUM_DRAWS, NUM_LEARNED, read_records
from numpy.typing import NDArray

from autotune.learner import CalibratedPredictor
from autotune.learner.gaussian_process import Posterior
from autotune.learner.surrogate import Surrogate
from autotune.predictor import AnalyticPredictor
from autotune.space.strategy_table import StrategyTable
from autotune.trials.trial import Trial

_DEVIATIONS = 1.96
_LIMIT_BYTES = 2**62
_Errors = dict[tuple[str, str], list[tuple[float, bool]]]


def main(paths: Sequence[Path]) -> None:
    """Print median, 95th percentile and coverage of both, after five and after half the trials."""
    print(f"$ python tests/benchmarks/posterior_accuracy.py {' '.join(map(str, paths))}\n")
    print(f"{NUM_DRAWS} draws; errors of all trials that were not learned from.\n")
    print(f"{'':44} {'step time':24}  reserved")
    print(f"{'':44} {'median   95 %  inside    ' * 2}")
    for path in paths:
        for name, prior, trials in read_records(path):
            for num_learned in (NUM_LEARNED, len(trials) // 2):
                errors = compare(prior, trials, num_learned)
                for who in ("corrected", "posterior"):
                    columns = (figures(errors[who, what]) for what in ("time", "memory"))
                    print(f"{f'{name}, {num_learned} trials: {who}':44} {'   '.join(columns)}")


def compare(prior: AnalyticPredictor, trials: Sequence[Trial], num_learned: int) -> _Errors:
    """Errors of both, and whether what was measured lay in their intervals."""
    random, errors = Random(0), {}
    strategies = list(dict.fromkeys(trial.strategy for trial in trials))
    surrogate = Surrogate(StrategyTable.of(strategies), prior)
    for _ in range(NUM_DRAWS):
        learned = random.sample(list(trials), num_learned)
        others = [trial for trial in trials if trial not in learned]
        rows = np.array([strategies.index(trial.strategy) for trial in others])
        seen_s = np.array([t.measurement.step_time_s for t in others if t.measurement])
        seen_bytes = np.array([t.measurement.peak_memory_bytes for t in others if t.measurement])
        corrected = CalibratedPredictor(prior, learned)
        said = [corrected.predict(trial.strategy) for trial in others]
        for what, seen, bounds in (
            ("time", seen_s, [(p.step_time_lower_s, p.step_time_upper_s) for p in said]),
            (
                "memory",
                seen_bytes,
                [(p.peak_memory_lower_bytes, p.peak_memory_upper_bytes) for p in said],
            ),
        ):
            expected = [
                p.step_time_s if what == "time" else float(p.peak_memory_bytes) for p in said
            ]
            errors.setdefault(("corrected", what), []).extend(
                (abs(one / real - 1), bool(low <= real <= high))
                for one, real, (low, high) in zip(expected, seen, bounds, strict=True)
            )
        for what, seen, posterior in (
            ("time", seen_s, surrogate.step_time(learned, rows)),
            ("memory", seen_bytes, surrogate.peak_memory(learned, rows, _LIMIT_BYTES)),
        ):
            errors.setdefault(("posterior", what), []).extend(_of_posterior(posterior, seen))
    return errors


def _of_posterior(posterior: Posterior, seen: NDArray[np.float64]) -> list[tuple[float, bool]]:
    apart = np.log(seen) - posterior.mean
    width = _DEVIATIONS * np.hypot(posterior.deviation, posterior.noise)
    errors = np.abs(np.exp(-apart) - 1)
    return list(zip(errors.tolist(), (np.abs(apart) <= width).tolist(), strict=True))


def figures(errors: Sequence[tuple[float, bool]]) -> str:
    """Median, 95th percentile, and the fraction inside."""
    sizes = [size for size, _ in errors]
    p95 = quantiles(sizes, n=20, method="inclusive")[-1]
    inside = sum(is_inside for _, is_inside in errors) / len(errors)
    return f"{median(sizes):6.1%} {p95:7.1%} {inside:7.0%}"


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main([Path(argument) for argument in sys.argv[1:]])
