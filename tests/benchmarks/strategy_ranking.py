"""How well predicted step times rank strategies that other people have measured.

    python tests/benchmarks/strategy_ranking.py STRATEGY_TIMES.csv

A group has one source, model, number of GPUs and global batch. Regret: how much slower than the
fastest measured is the strategy that is predicted to be the fastest. The rows do not describe the
machine, so a few rates of it are fitted, for each model on the rows of all others.
"""

from __future__ import annotations

import math
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

from published_rows import NotUsableError, hardware_of, read_rows, shape_of, strategy_ranks

import autotune.predictor.step_time.operation_counts
from autotune.knob_values import Attention
from autotune.machine.hardware import Hardware
from autotune.machine.rates import Rates
from autotune.predictor.arithmetic import Ask
from autotune.predictor.memory.peak import MemoryModel
from autotune.predictor.memory.sharding import ShardModel
from autotune.predictor.step_time.model import StepParts, TimeModel
from autotune.question.workload import Workload
from autotune.space.strategy import Strategy

Group = tuple[str, str, int, int]

ASSUMED = """\
Assumed, since the rows do not say: bf16, ZeRO-0, all GPUs on one host, A100 of 40 GB. The software
is Megatron-DeepSpeed's, so attention is not flash but one fused softmax, Adam one kernel for all
tensors, checkpoints wait for the device, and every stage of a pipeline has as many layers. Fitted
on the rows of other models: the six figures of each fold. Tensor and pipeline parallelism
together, which the tool refuses, are ranked as well."""

MEGATRON_SCORE_BYTES = (13, 19)
"""Of one attention score, forward and backward: product written 2, scaled, masked and softmaxed in
one kernel 4, dropout with its mask 5, read by the product 2; and their gradients. What
transformers' eager attention moves is more."""

FUSED_ADAM_BYTES, DEEPSPEED_ADAM_BYTES = 30, 54
"""Of a parameter: gradient 2, weight and moments 12 read and 12 written, copied to 16 bit 4."""

FITTED = {
    "matmul_flops_per_s": 2.2e14,
    "memory_bytes_per_s": 1.4e12,
    "kernel_launch_s": 5e-6,
    "link_bytes_per_s": 2e11,
    "collective_s": 2e-5,
    "wait_s": 1e-3,
}
"""What is fitted, and where the search for it begins: usual figures of an A100 host. Collectives:
of one level of a tree of ranks."""

HIGHEST = {"matmul_flops_per_s": 3.12e14, "memory_bytes_per_s": 2.0e12, "link_bytes_per_s": 3e11}
"""The data sheet's, above which no machine is."""

HOLD = 2e-4
"""What a rate's distance from the usual figure counts, beside the errors: as a tenth of a row's
scatter in every hundredth row."""

NUM_SWEEPS = 8
STEP = math.log(2)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured step."""

    group: Group
    workload: Workload
    machine: Hardware
    strategy: Strategy
    step_time_s: float


class UniformShares(ShardModel):
    """As many layers in each stage, whatever the first and the last hold besides."""

    def _stage_sizes(self, num_stages: int) -> list[int]:
        return [self._shape.num_hidden_layers // num_stages] * num_stages


class MegatronTime(TimeModel):
    """What is otherwise in Megatron.

    Adam is one kernel for all tensors. A checkpoint is taken to wait for the device, and the
    device then for the host: a part of a layer's time does not grow with the micro-batch at all.
    """

    wait_s = 0.0

    def parts_of(self, ask: Ask, shard: Any, shards: Any, accumulation: Any) -> StepParts:
        """As if each layer waited, with the other Adam."""
        parts = super().parts_of(ask, shard, shards, accumulation)
        return replace(
            parts,
            link_s=parts.link_s + shard.num_layers * self.wait_s,
            update_s=parts.update_s * FUSED_ADAM_BYTES / DEEPSPEED_ADAM_BYTES,
            update_host_s=0.0,
        )


def read_row(row: Mapping[str, str]) -> Row:
    """What one row stands for.

    Raises:
        NotUsableError: a strategy or a model that is not ours.
    """
    tensor, pipeline, data = strategy_ranks(row)
    if row["act_ckpt"] not in ("full", "none"):
        raise NotUsableError("checkpointing is not stated")
    shape, machine = shape_of(row), hardware_of(row)
    batch = int(row["micro_batch"]) * int(row["grad_accum"]) * data
    strategy = Strategy(
        tensor_parallel_size=tensor,
        micro_batch_size=int(row["micro_batch"]),
        checkpoint_interval=int(row["act_ckpt"] == "full"),
        attention=Attention.EAGER,
    )
    # Past the rules of the tool, which has no way to run both at once.
    object.__setattr__(strategy, "pipeline_parallel_size", pipeline)
    return Row(
        group=(row["source"], row["model"], machine.num_devices, batch),
        workload=Workload(model=shape, seq_len=int(row["seq_len"]), global_batch_size=batch),
        machine=machine,
        strategy=strategy,
        step_time_s=float(row["step_time_s"]),
    )


def predict(rows: Sequence[Row], fitted: Mapping[str, float]) -> list[float]:
    """Step times on machines of these rates."""
    rates = Rates(**{name: value for name, value in fitted.items() if name != "wait_s"})
    models: dict[Group, MegatronTime] = {}
    seconds = []
    for row in rows:
        model = models.get(row.group)
        if model is None:
            levels = math.log2(row.machine.num_devices)
            of_all = replace(rates, collective_s=levels * fitted["collective_s"])
            machine = replace(row.machine, rates=of_all)
            memory = MemoryModel(row.workload, machine)
            memory.states._shards = UniformShares(row.workload.model)
            model = models[row.group] = MegatronTime(row.workload, machine, memory)
            model.wait_s = fitted["wait_s"]
        seconds.append(model.parts(row.strategy).total_s)
    return seconds


def fit(rows: Sequence[Row]) -> dict[str, float]:
    """The rates with the least mean squared logarithm of predicted over measured."""

    def loss(logs: Mapping[str, float]) -> float:
        rates = {name: math.exp(value) for name, value in logs.items()}
        if any(rates[name] > most for name, most in HIGHEST.items()):
            return math.inf
        pairs = zip(predict(rows, rates), rows, strict=True)
        apart = sum((value - math.log(FITTED[name])) ** 2 for name, value in logs.items())
        return mean(math.log(said / row.step_time_s) ** 2 for said, row in pairs) + HOLD * apart

    found = descend(loss, {name: math.log(value) for name, value in FITTED.items()})
    return {name: math.exp(value) for name, value in found.items()}


def descend(
    loss: Callable[[Mapping[str, float]], float], start: Mapping[str, float]
) -> dict[str, float]:
    """One coordinate after the other, up or down by a step that shrinks."""
    best, least, step = dict(start), loss(start), STEP
    for _ in range(NUM_SWEEPS):
        for name in best:
            for sign in (1, -1):
                while (value := loss(best | {name: best[name] + sign * step})) < least:
                    best[name] += sign * step
                    least = value
        step /= 1.6
    return best


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


def usable(path: Path) -> list[Row]:
    """The rows that can be ranked; prints how many cannot, and why."""
    excluded: Counter[str] = Counter()
    rows = []
    for line in read_rows(path):
        try:
            rows.append(read_row(line))
        except NotUsableError as reason:
            excluded[str(reason)] += 1
    sizes = Counter(row.group for row in rows)
    alone = [row for row in rows if sizes[row.group] == 1]
    excluded["alone in its group: nothing to rank"] += len(alone)
    for why, number in excluded.most_common():
        print(f"left out {number}: {why}")
    return [row for row in rows if sizes[row.group] > 1]


def predict_each_from_others(rows: Sequence[Row]) -> dict[Group, list[tuple[float, float]]]:
    """Predicted and measured step times; prints the rates of each fold."""
    groups: dict[Group, list[tuple[float, float]]] = defaultdict(list)
    for model in sorted({row.group[1] for row in rows}):
        rates = fit([row for row in rows if row.group[1] != model])
        values = ", ".join(f"{name} {rates[name]:.3g}" for name in FITTED)
        print(f"fold without {model}: {values}")
        own = [row for row in rows if row.group[1] == model]
        for row, said in zip(own, predict(own, rates), strict=True):
            groups[row.group].append((said, row.step_time_s))
    return groups


def main(path: Path) -> None:
    """Print the folds, the groups, and the means."""
    autotune.predictor.step_time.operation_counts._EAGER_BYTES = MEGATRON_SCORE_BYTES
    groups = predict_each_from_others(usable(path))
    regrets, correlations = [], []
    print("\nmodel, GPUs, global batch: strategies, regret, Spearman's rho")
    for group, pairs in sorted(groups.items()):
        regret = min(pairs)[1] / min(measured for _, measured in pairs) - 1
        rho = spearman([p for p, _ in pairs], [m for _, m in pairs])
        regrets.append(regret)
        correlations.append(rho)
        print(f"{', '.join(map(str, group[1:])):28} {len(pairs):3} {regret:7.1%} {rho:6.2f}")
    print(f"\nrows used {sum(map(len, groups.values()))}, in {len(groups)} groups")
    errors = [said / measured - 1 for pairs in groups.values() for said, measured in pairs]
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
