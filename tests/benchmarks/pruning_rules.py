"""What each pruning rule would have lost and saved, replayed on measured trials.

    python tests/benchmarks/pruning_rules.py results/h100-1.1B-full-8m \\
        results/h100-13B-lora-10m results/h100-techniques/techniques.jsonl

Each set of trials is taken for a search on devices of 48 sizes. What surely fits runs first, then
the rest, the most promising first, each asked of the pruner with the trials that ran before.
Predictions are those of the present code: by the formula, and with the allocator simulated, for
which models are traced here. Sets as `calibration_accuracy.py` reads them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from calibration_accuracy import read_records

from autotune.machine.hardware import GIB
from autotune.profile import script_of
from autotune.pruners import PredictedMemoryPruner
from autotune.study.pareto import pareto_front
from autotune.trials.trial import Prediction, Trial

CARDS_GIB = (22, 24, 32, 40, 45, 48, 80)
NUM_STEPS = 41
HEADROOM = 0.05

RULES: dict[str, Callable[[Prediction], Prediction]] = {
    "expected peak": lambda said: replace(said, peak_memory_upper_bytes=said.peak_memory_bytes),
    "upper bound": lambda said: replace(said, peak_memory_bytes=said.peak_memory_upper_bytes),
    "as built": lambda said: said,
}
"""What the pruner is shown: with both the same, there is no doubt for it to weigh."""


@dataclass(kw_only=True)
class Score:
    """Of one rule over all sizes of devices."""

    num_fitting: int = 0
    num_lost: int = 0
    """Fitting trials that were pruned."""
    num_front: int = 0
    num_front_lost: int = 0
    """Of the measured front."""
    num_launched: int = 0
    num_out_of_memory: int = 0

    def __str__(self) -> str:
        return (
            f"lost {self.num_lost / self.num_fitting:6.1%} of what fits, "
            f"{self.num_front_lost:3} of {self.num_front} points of fronts; "
            f"{self.num_out_of_memory / max(1, self.num_launched):5.1%} of launches out of memory"
        )


def replay(trials: Sequence[tuple[Trial, Prediction]], limit: int, score: Score) -> None:
    """Add one device to a rule's score."""
    pruner = PredictedMemoryPruner(limit, host_memory_bytes=2**60, disk_bytes=2**60)
    ran: list[Trial] = []
    for trial, said in sorted(
        trials,
        key=lambda pair: (
            pair[1].peak_device_upper_bytes > limit,
            -pair[1].tokens_per_second,
        ),
    ):
        if pruner.reason_to_skip(trial.strategy, said, ran) is None:
            ran.append(replace(trial, memory_limit_bytes=limit))
    numbers = {trial.number for trial in ran}
    everything = [replace(trial, memory_limit_bytes=limit) for trial, _ in trials]
    fitting, front = [t for t in everything if t.fits], pareto_front(everything)
    score.num_fitting += len(fitting)
    score.num_lost += sum(trial.number not in numbers for trial in fitting)
    score.num_front += len(front)
    score.num_front_lost += sum(trial.number not in numbers for trial in front)
    score.num_launched += len(ran)
    score.num_out_of_memory += sum(not trial.fits for trial in ran)


def score_of(said: Sequence[tuple[Trial, Prediction]], limits: Sequence[int]) -> Iterator[str]:
    """A line for each rule, and how often fitting or not was foretold."""
    for rule, shown in RULES.items():
        score = Score()
        for limit in limits:
            replay([(trial, shown(each)) for trial, each in said], limit, score)
        yield f"{rule:14} {score}"
    right = [
        (each.peak_device_bytes <= limit) == replace(trial, memory_limit_bytes=limit).fits
        for trial, each in said
        for limit in limits
    ]
    yield f"fits or does not, by the expected peak: right {fmean(right):.1%} of {len(right)}"


def main(paths: Sequence[Path]) -> None:
    """Print a line for each set, source of predictions and rule."""
    for path in paths:
        for source, scripts in (("formula", None), ("simulated", script_of)):
            for name, prior, trials in read_records(path, scripts):
                said = [(trial, prior.predict(trial.strategy)) for trial in trials]
                peaks = sorted(t.measurement.peak_device_bytes for t in trials if t.measurement)
                step = (1.15 * peaks[-1] - peaks[0]) / (NUM_STEPS - 1)
                limits = [int(gib * GIB * (1 - HEADROOM)) for gib in CARDS_GIB]
                limits += [int(peaks[0] + place * step) for place in range(NUM_STEPS)]
                width = fmean(p.peak_memory_upper_bytes / p.peak_memory_bytes for _, p in said)
                print(
                    f"{name}, {source}: {len(trials)} trials; "
                    f"upper bound over expected peak {width:.2f}"
                )
                for line in score_of(said, limits):
                    print(f"  {line}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main([Path(argument) for argument in sys.argv[1:]])
