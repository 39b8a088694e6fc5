"""How far predicted peak memory is from what other people have published.

    python tests/benchmarks/published_memory.py PUBLISHED_CASES.csv

DeepSpeed's rows are predicted by the predictor's memory model, with what their layers hold that
ours do not (`foreign_layers.py`). Of other stacks activations and logits are the predictor's, and
the rest follows `foreign_stacks.py`. What a row does not say leaves it out, and is counted.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median, quantiles

from foreign_layers import dropout_bytes, megatron_layer_bytes, old_opt_bytes
from foreign_stacks import FOREIGN_STACKS, foreign_peak, stack_of
from published_rows import GIB, NotUsableError, hardware_of, read_rows, shape_of, strategy_ranks

from autotune.errors import ConfigError
from autotune.knob_values import Attention, MasterWeights, Optimizer, Precision
from autotune.machine.hardware import DeviceType, Hardware
from autotune.predictor.analytic import DEVICE_OVERHEAD_BYTES
from autotune.predictor.memory.activations import token_bytes
from autotune.predictor.memory.peak import HeldBytes, MemoryModel
from autotune.predictor.memory.sharding import RankShard
from autotune.question.workload import Method, Workload
from autotune.space.strategy import Strategy

_ATTENTION = "q_proj,k_proj,v_proj,o_proj"
_MLP = "up_proj,down_proj,gate_proj"
_TARGETS = {
    "q_projk_projv_projo_proj": _ATTENTION,
    "attention": _ATTENTION,
    "all-linear": "all-linear",
    "k,q,v,up,down,gate": f"k_proj,q_proj,v_proj,{_MLP}",
    "q,v,o,mlp": f"q_proj,v_proj,o_proj,{_MLP}",
}
_ALLOCATED = ("max_memory_allocated", "MaxMemAllocated", "torch peak (GiB)", "torch peak active")
_OVERHEAD_BYTES = DEVICE_OVERHEAD_BYTES[DeviceType.CUDA]
_LASTING = ("weights", "master weights", "optimizer states")
_MEGATRON = (
    "device memory of Megatron-DeepSpeed of 2021 on two hosts: neither the engine's version nor "
    "what NCCL holds is said, nor of pipelines which stage is meant"
)

PROVENANCE = """\
fms: closed forms of these states were once fitted to 28 of these rows, and PowerLM's vocabulary
was inferred from such a peak: no independent evidence. Of all others no number was fitted. Rules
were read from the code of each stack, with its rows in sight: independent, but not blind. Two were
corrected after a first comparison, by code (what torchtune's compiled loss stores, which units its
70B is divided into), and that can-i-finetune ran without autocast was seen from what its records
hold after forward. Only DeepSpeed's rows test the predictor as `autotune` uses it. Device memory
and reserved memory are live tensors, and the share above of those that come and go: measured on
fms rows, which are scored by live tensors alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One row beside its prediction, in GiB."""

    row: Mapping[str, str]
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Relative and signed."""
        return self.predicted / self.measured - 1

    @property
    def source(self) -> str:
        """In a word."""
        if self.row["shard_impl"] == "deepspeed":
            return "Megatron-DeepSpeed" if "Megatron" in self.row["model"] else "deepspeed"
        return self.row["id"].rsplit("-", 1)[0]

    def __str__(self) -> str:
        """In a line."""
        row = self.row
        what = f"{row['id']:15} {row['model'][-22:]:22} {row['method']:5} {row['shard_impl']:9}"
        what += f" x{row['num_gpus']:>2} micro-batch {row['micro_batch']:>2} {row['mem_metric']}"
        return f"{self.error:+7.1%} {self.predicted:6.2f}/{self.measured:6.2f} {what}"


def check(row: Mapping[str, str]) -> None:
    """Raises NotUsableError for a row that does not say what memory depends on."""
    metric = row["mem_metric"]
    reasons = {
        f"quality {row['quality']}": row["quality"] != "A",
        "no memory figure": not row["peak_mem_gib"],
        "InternEvo: whose memory is meant is not said": metric.startswith("GPU memory"),
        "checkpointing is not stated": row["act_ckpt"] not in ("full", "none"),
        "LoRA targets are not known": row["method"] != "full"
        and row["lora_targets"] not in _TARGETS,
    }
    for reason, is_true in reasons.items():
        if is_true:
            raise NotUsableError(reason)


def read_row(row: Mapping[str, str]) -> tuple[Workload, Hardware, Strategy]:
    """What one row stands for.

    Raises:
        NotUsableError: it stands for nothing that is known here.
    """
    check(row)
    shape, machine, (tensor, pipeline, data) = shape_of(row), hardware_of(row), strategy_ranks(row)
    method, micro_batch = Method(row["method"]), int(row["micro_batch"])
    rank = int(row["lora_rank"] or 0)
    is_foreign = row["shard_impl"] in FOREIGN_STACKS
    is_bf16 = "bf16 states" in row["optimizer"]
    is_eager = "opt-" in row["model"]
    workload = Workload(
        model=shape,
        seq_len=int(row["seq_len"]),
        global_batch_size=micro_batch * int(row["grad_accum"]) * data,
        method=method,
        lora_rank=rank or 16,
        lora_targets=tuple(_TARGETS.get(row["lora_targets"], "all-linear").split(",")),
    )
    try:
        strategy = Strategy(
            zero_stage=0 if is_foreign else int(row["zero_or_fsdp_stage"]),
            tensor_parallel_size=tensor,
            pipeline_parallel_size=pipeline,
            micro_batch_size=micro_batch,
            checkpoint_interval=int(row["act_ckpt"] == "full"),
            optimizer=Optimizer.ADAMW,
            precision=Precision.FP16 if row["precision"] == "fp16" else Precision.BF16,
            master_weights=MasterWeights.BF16 if is_bf16 else MasterWeights.FP32,
            attention=Attention.EAGER if is_eager else Attention.SDPA,
            # DeepSpeed's default: no configuration that was read names it.
            overlap_comm=is_foreign or pipeline > 1 or row["zero_or_fsdp_stage"] == "3",
            reduce_bucket_size=50_000_000
            if "reduce_bucket_size 5e7" in row["notes"]
            else 5 * 10**8,
            lora_rank=rank,
        )
    except ConfigError as error:
        raise NotUsableError(str(error)) from error
    return workload, machine, strategy


def layer_extra(row: Mapping[str, str], workload: Workload, layer: int) -> int:
    """Bytes of one token in one layer of a DeepSpeed row, beside the predictor's own `layer`.

    PEFT's examples train adapters with dropout 0.1.
    """
    shape, seq_len = workload.model, workload.seq_len
    if "Megatron" in row["model"]:
        return megatron_layer_bytes(shape, seq_len, int(row["tp"])) - layer
    if shape.model_type == "opt":
        return old_opt_bytes(shape, seq_len)
    if row["source"].startswith("huggingface/peft"):
        targets = workload.adapter_targets("")
        return dropout_bytes(shape, targets, adapter_bytes=2, element_bytes=2)
    return 0


class HeavierLayers(MemoryModel):
    """The predictor's memory, where layers hold something more."""

    extra = 0.0
    """Bytes of a token and layer."""

    def _held(self, strategy: Strategy, shard: RankShard) -> HeldBytes:
        held = super()._held(strategy, shard)
        num_kept = 0 if strategy.checkpoint_interval else shard.num_layers * shard.num_in_flight
        return replace(
            held,
            loss=held.loss + num_kept * self.extra,
            backward=held.backward + max(1, num_kept) * self.extra,
            end_of_backward=held.end_of_backward + self.extra,
        )


def deepspeed_peak(
    row: Mapping[str, str], workload: Workload, machine: Hardware, strategy: Strategy
) -> tuple[float, float]:
    """The predictor's peak: live bytes, and those that stay."""
    model = HeavierLayers(workload, machine)
    token = token_bytes(
        workload.model,
        strategy,
        lora_targets=workload.adapter_targets(""),
        seq_len=workload.seq_len,
    )
    model.extra = layer_extra(row, workload, token.layer)
    peak = model.peak(strategy)
    lasting = sum(peak.moments[peak.moment][part] for part in _LASTING)
    return peak.allocated_bytes, lasting


def default_allocator_share(rows: Sequence[Mapping[str, str]]) -> float:
    """What PyTorch's allocator keeps beside live tensors, as a part of those that come and go.

    Without expandable segments, for which none of the sources asks: the median of the fms rows,
    which give device memory beside live tensors at the peak and after the first step.
    """
    pattern = re.compile(r"avg peak ([\d.]+) MiB; torch alloc after init/step ([\d.]+) GiB")
    shares = []
    for row in rows:
        found = pattern.search(row["notes"])
        if found and row["peak_mem_gib"]:
            device, lasting, peak = float(found[1]) / 1024, float(found[2]), _measured(row)
            shares.append((device - _OVERHEAD_BYTES / GIB - peak) / (peak - lasting))
    return median(shares)


def predicted_bytes(row: Mapping[str, str], allocator_share: float) -> float:
    """In the row's own metric.

    What the allocator keeps is given back before the device is full.

    Raises:
        NotUsableError: the row or its metric is not covered.
    """
    workload, machine, strategy = read_row(row)
    if row["shard_impl"] in FOREIGN_STACKS:
        peak = foreign_peak(workload, strategy, stack_of(row))
        allocated, lasting = peak.allocated_bytes, peak.lasting_bytes
    else:
        allocated, lasting = deepspeed_peak(row, workload, machine, strategy)
    metric = row["mem_metric"]
    if any(name in metric for name in _ALLOCATED):
        return allocated
    room = max(0.0, machine.device_memory_bytes - _OVERHEAD_BYTES - allocated)
    reserved = allocated + min(room, allocator_share * (allocated - lasting))
    if "reserved" in metric:
        return reserved
    if "nvidia-smi" in metric:
        return reserved + _OVERHEAD_BYTES
    raise NotUsableError(f"metric {metric}")


def _measured(row: Mapping[str, str]) -> float:
    return float(row["peak_mem_gib"])


def _summary(name: str, outcomes: Sequence[Outcome]) -> str:
    """One line: how many, and how far off."""
    absolute = sorted(abs(outcome.error) for outcome in outcomes)
    high = quantiles(absolute, n=20, method="inclusive")[-1]
    return (
        f"{name:44} {len(absolute):4} {median(absolute):7.1%} {high:7.1%} {absolute[-1]:7.1%} "
        f"{median(outcome.error for outcome in outcomes):+7.1%}"
    )


def _print_rows(title: str, outcomes: Sequence[Outcome]) -> None:
    print(f"\n{title}", *outcomes, sep="\n")


def main(path: Path) -> None:
    """Print the errors, what was left out, and the worst rows."""
    rows = read_rows(path)
    share = default_allocator_share(rows)
    excluded: Counter[str] = Counter()
    outcomes: list[Outcome] = []
    unsure: list[Outcome] = []
    for row in rows:
        try:
            predicted = predicted_bytes(row, share) / GIB
        except NotUsableError as reason:
            excluded[str(reason)] += 1
            continue
        outcome = Outcome(row=row, predicted=predicted, measured=_measured(row))
        (unsure if outcome.source == "Megatron-DeepSpeed" else outcomes).append(outcome)
    _report(outcomes, unsure, excluded + Counter({_MEGATRON: len(unsure)}), share)


def _report(
    outcomes: list[Outcome], unsure: list[Outcome], excluded: Counter[str], share: float
) -> None:
    print(f"rows used {len(outcomes)}")
    for why, number in excluded.most_common():
        print(f"left out {number}: {why}")
    print(f"\nthe allocator's share of what comes and goes: {share:.3f}\n")
    print(f"{'memory (goals: median 4 %, p95 12 %)':44} rows  median     p95 largest  signed")
    own = [outcome for outcome in outcomes if outcome.source == "deepspeed"]
    one_stage = [outcome for outcome in unsure if outcome.row["pp"] == "1"]
    print(_summary("(a) all used", outcomes))
    print(_summary("(b) of them independent", [o for o in outcomes if o.source != "fms"]))
    print(_summary("(c) of them DeepSpeed's", own))
    for source in sorted({outcome.source for outcome in outcomes} - {"deepspeed"}):
        print(_summary(f"    {source}", [o for o in outcomes if o.source == source]))
    print(_summary("Megatron-DeepSpeed, predicted but left out", unsure))
    print(_summary("(a) and those of it that have one stage", outcomes + one_stage))
    print(_summary("(a) and all of it", outcomes + unsure))
    by_error = sorted(outcomes, key=lambda one: -abs(one.error))
    _print_rows("the worst rows used, predicted/measured in GiB", by_error[:12])
    _print_rows("all rows of DeepSpeed", own)
    _print_rows("Megatron-DeepSpeed, left out", unsure)
    print(f"\n{PROVENANCE}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
