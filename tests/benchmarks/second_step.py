"""How the second optimizer step of a trial compares with those that were timed.

    python tests/benchmarks/second_step.py results > results/trial-start/second-step.txt

Reads recorded trials with two steps to warm up and at least two timed: where the second step
is as the rest, one is enough.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median

from autotune.trials.trial import TrialSpec


def main(folder: Path) -> None:
    """Print a line for each trial, and one for each kind of them."""
    kinds: dict[str, list[float]] = defaultdict(list)
    print(f"{'trial':48}{'second':>9}{'timed':>9}{'differ':>9}  strategy")
    for log in sorted(folder.rglob("rank0.jsonl")):
        spec = TrialSpec.from_dict(json.loads((log.parent / "trial.json").read_text()))
        second_s, timed_s = _steps(log)
        if second_s is None or len(timed_s) < 2:
            continue
        differ = second_s / median(timed_s) - 1
        kinds["ZeRO-3" if spec.strategy.zero_stage == 3 else "ZeRO-0 to 2"].append(differ)
        name = str(log.parent.relative_to(folder))
        print(f"{name:48}{second_s:9.2f}{median(timed_s):9.2f}{differ:9.1%}  {spec.strategy}")
    for kind, differences in sorted(kinds.items()):
        differences.sort()
        print(
            f"{kind}: {len(differences)} trials, median {median(differences):+.1%}, "
            + ", ".join(f"{differ:+.1%}" for differ in differences)
        )


def _steps(log: Path) -> tuple[float | None, list[float]]:
    """Seconds of the second step, None where it was timed, and of the timed ones."""
    events = map(json.loads, log.read_text().splitlines())
    steps = [event for event in events if event["event"] == "step"]
    timed_s = [step["time_s"] for step in steps if step["is_timed"]]
    warm_s = [step["time_s"] for step in steps if not step["is_timed"]]
    return (warm_s[1] if len(warm_s) == 2 else None), timed_s


if __name__ == "__main__":
    main(Path(sys.argv[1]))
