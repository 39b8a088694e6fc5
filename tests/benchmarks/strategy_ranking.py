"""How well predicted step times rank strategies that other people have measured.

    python tests/benchmarks/strategy_ranking.py STRATEGY_TIMES.csv

A group has one source, model, number of GPUs and global batch. Regret: how much slower than the
fastest measured is the strategy that is predicted to be the fastest.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median

from published_rows import NotUsableError, hardware_of, read_rows, shape_of, strategy_ranks

from autotune.errors import ConfigError
from autotune.predictor import AnalyticPredictor
from autotune.strategy import Strategy
from autotune.workload import Workload

Group = tuple[str, str, int, int]

ASSUMED = """\
Assumed, since the rows do not say: bf16, ZeRO-0, all GPUs on one host with the links of HBM
devices, A100 of 40 GB. No constant was fitted to these rows. Not modelled: Megatron's fused
kernels, its own tensor parallelism (this predicts DeepSpeed's AutoTP), its host overhead."""


def predict(row: Mapping[str, str]) -> tuple[Group, float, float]:
    """Group, predicted and measured step time.

    Raises:
        NotUsableError: a strategy or a model that is not ours.
    """
    tensor, pipeline, data = strategy_ranks(row)
    if row["act_ckpt"] not in ("full", "none"):
        raise NotUsableError("checkpointing is not stated")
    shape, machine = shape_of(row), hardware_of(row)
    batch = int(row["micro_batch"]) * int(row["grad_accum"]) * data
    workload = Workload(model=shape, seq_len=int(row["seq_len"]), global_batch_size=batch)
    try:
        strategy = Strategy(
            tensor_parallel_size=tensor,
            pipeline_parallel_size=pipeline,
            micro_batch_size=int(row["micro_batch"]),
            checkpoint_interval=int(row["act_ckpt"] == "full"),
        )
    except ConfigError as error:
        raise NotUsableError(
            "tensor and pipeline parallelism together: refused by the tool"
            if tensor > 1 and pipeline > 1
            else str(error)
        ) from error
    predicted = AnalyticPredictor(workload, machine).predict(strategy).step_time_s
    group = row["source"], row["model"], machine.num_devices, batch
    return group, predicted, float(row["step_time_s"])


def ranks(values: Sequence[float]) -> list[float]:
    """Places from the smallest on; equal values share the mean of theirs."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2
        for value in values
    ]


def spearman(left: Sequence[float], right: Sequence[float]) -> float:
    """Pearson's correlation of the places; 0 where one side has no order."""
    a, b = ranks(left), ranks(right)
    mean_a, mean_b = mean(a), mean(b)
    above = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    below = sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b)
    return float(above / below**0.5) if below else 0.0


def main(path: Path) -> None:
    """Print the groups, what was left out, and the means."""
    excluded: Counter[str] = Counter()
    groups: dict[Group, list[tuple[float, float]]] = defaultdict(list)
    errors = []
    for row in read_rows(path):
        try:
            group, predicted, measured = predict(row)
        except NotUsableError as reason:
            excluded[str(reason)] += 1
            continue
        groups[group].append((predicted, measured))
        errors.append(predicted / measured - 1)
    alone = [group for group, pairs in groups.items() if len(pairs) == 1]
    excluded["alone in its group: nothing to rank"] += len(alone)
    for group in alone:
        del groups[group]
    regrets, correlations = [], []
    print("model, GPUs, global batch: strategies, regret, Spearman's rho")
    for group, pairs in sorted(groups.items()):
        regret = min(pairs)[1] / min(measured for _, measured in pairs) - 1
        rho = spearman([p for p, _ in pairs], [m for _, m in pairs])
        regrets.append(regret)
        correlations.append(rho)
        print(f"{', '.join(map(str, group[1:])):28} {len(pairs):3} {regret:7.1%} {rho:6.2f}")
    print(f"\nrows used {sum(map(len, groups.values()))}, in {len(groups)} groups")
    for why, number in excluded.most_common():
        print(f"left out {number}: {why}")
    print(
        f"regret mean {mean(regrets):.1%}, median {median(regrets):.1%}, "
        f"largest {max(regrets):.1%} (goal: mean at most 3 %)\n"
        f"Spearman mean {mean(correlations):.3f}, least {min(correlations):.2f} "
        f"(goal: mean at least 0.9)\n"
        f"step time: median error {median(map(abs, errors)):.1%}, signed {median(errors):+.1%}"
    )
    print(f"\n{ASSUMED}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
