"""How far predicted peak memory is from what other people have published.

    python tests/benchmarks/published_memory.py PUBLISHED_CASES.csv

DeepSpeed's rows are predicted by `AnalyticPredictor`. Plain PyTorch's and FSDP's, which never pass
through DeepSpeed's buffers, keep the predictor's activations, and take their states from
`foreign_bytes`. What neither knows is left out, and counted by its reason.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import median, quantiles

from published_rows import GIB, NotUsableError, hardware_of, read_rows, shape_of, strategy_ranks

from autotune.errors import ConfigError
from autotune.hardware import Hardware
from autotune.knobs import MasterWeights, Optimizer, Precision
from autotune.predictor import AnalyticPredictor
from autotune.predictor.activations import token_bytes
from autotune.strategy import Strategy
from autotune.workload import Method, Workload

_PLAIN = ("none", "fsdp1")
_ATTENTION = "q_proj,k_proj,v_proj,o_proj"
_TARGETS = {"q_projk_projv_projo_proj": _ATTENTION, "all-linear": "all-linear"}
_TARGETS["k,q,v,up,down,gate"] = "k_proj,q_proj,v_proj,up_proj,down_proj,gate_proj"
_ALLOCATED = ("max_memory_allocated", "MaxMemAllocated")


PROVENANCE = """\
Of the rows of plain PyTorch and FSDP only activations and logits are the predictor's. Their states
follow closed forms that were fitted to 28 of the fms rows, and PowerLM's vocabulary was inferred
from such a peak: full fms rows are no independent evidence. Only the rows of `deepspeed` test
the predictor as `autotune` uses it."""


def check(row: Mapping[str, str]) -> None:
    """Raises NotUsableError for a row that the rules here do not cover."""
    stack, source = row["shard_impl"], row["source"]
    reasons = {
        f"quality {row['quality']}": row["quality"] != "A",
        "no memory figure": not row["peak_mem_gib"],
        f"stack {stack}": stack not in (*_PLAIN, "deepspeed"),
        "Megatron-DeepSpeed: layers and buffers of its own": "bigscience" in source,
        "torchtune: tokens of its samples, compiled or chunked loss, not all stated": "torchtune"
        in source,
        "QLoRA of plain PyTorch or FSDP: casts of kbit preparation": row["method"] == "qlora"
        and stack in _PLAIN,
        "FSDP with offload": stack == "fsdp1" and row["offload"] != "none",
        "checkpointing is not stated": row["act_ckpt"] not in ("full", "none"),
        "LoRA targets are not known": row["method"] != "full"
        and row["lora_targets"] not in _TARGETS,
        "optimizer without a rule": stack in _PLAIN and not row["optimizer"].startswith("AdamW"),
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
    is_plain = row["shard_impl"] in _PLAIN
    is_bf16 = "bf16 states" in row["optimizer"]
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
            zero_stage=0 if is_plain else int(row["zero_or_fsdp_stage"]),
            tensor_parallel_size=tensor,
            pipeline_parallel_size=pipeline,
            micro_batch_size=micro_batch,
            checkpoint_interval=int(row["act_ckpt"] == "full"),
            optimizer=Optimizer.ADAMW,
            precision=Precision.FP16 if row["precision"] == "fp16" else Precision.BF16,
            master_weights=MasterWeights.BF16 if is_bf16 else MasterWeights.FP32,
            reduce_bucket_size=50_000_000
            if "reduce_bucket_size 5e7" in row["notes"]
            else 5 * 10**8,
            lora_rank=rank,
        )
    except ConfigError as error:
        raise NotUsableError(str(error)) from error
    return workload, machine, strategy


def foreign_bytes(workload: Workload, machine: Hardware, strategy: Strategy) -> float:
    """Peak of live tensors in pure bf16 with torch's AdamW, whole or divided by FSDP.

    Full: weights 2, moments 4, gradients 2 and one `foreach` temporary of 2 bytes a parameter at
    the optimizer step. LoRA: adapters, moments and gradients in fp32. FSDP divides all of it, and
    gathers the layer at work, the next one, and the root unit, which stays gathered. The 10 bytes
    of a full step and the root unit are of the closed forms in `columns.md`.
    """
    shape, ranks = workload.model, machine.num_devices
    targets = workload.adapter_targets("")
    token = token_bytes(shape, strategy, lora_targets=targets, seq_len=workload.seq_len)
    tokens = strategy.micro_batch_size * workload.seq_len
    num_layers = shape.num_hidden_layers
    inputs = num_layers * (token.layer_input if strategy.checkpoint_interval else token.layer)
    loss = tokens * (inputs + token.head + token.loss)
    at_once = token.layer if strategy.checkpoint_interval else 0
    backward = tokens * (inputs + at_once + token.head + token.layer_backward)
    size = shape.num_parameters
    trained = workload.num_trainable_parameters(strategy.lora_rank)
    root = shape.embedding_parameters + shape.lm_head_parameters
    gathered = 2 * (root + 2 * shape.parameters_per_layer) if ranks > 1 else 0
    if strategy.lora_rank:
        stays = (2 * size + (4 + 8 + 4) * trained) / ranks
        return stays + gathered + max(loss, backward)
    stays = 6 * size / ranks
    return max(10 * size / ranks, stays + gathered + max(loss, backward + 2 * root))


def predicted_bytes(row: Mapping[str, str]) -> float:
    """In the row's own metric.

    Raises:
        NotUsableError: the row or its metric is not covered.
    """
    workload, machine, strategy = read_row(row)
    metric = row["mem_metric"]
    is_allocated = any(name in metric for name in _ALLOCATED)
    if row["shard_impl"] in _PLAIN:
        if not is_allocated:
            raise NotUsableError(f"metric of plain PyTorch or FSDP: {metric}")
        return foreign_bytes(workload, machine, strategy)
    prediction = AnalyticPredictor(workload, machine).predict(strategy)
    if is_allocated:
        return prediction.peak_memory_bytes - prediction.breakdown_bytes["allocator"]
    if "reserved" in metric:
        return prediction.peak_memory_bytes
    if "nvidia-smi" in metric or "nvml" in metric:
        return prediction.peak_device_bytes
    raise NotUsableError(f"metric {metric}")


def main(path: Path) -> None:
    """Print the errors, what was left out, and the worst rows."""
    excluded: Counter[str] = Counter()
    errors: list[tuple[float, str]] = []
    by_stack: dict[str, list[float]] = {}
    for row in read_rows(path):
        try:
            predicted = predicted_bytes(row) / GIB
        except NotUsableError as reason:
            excluded[str(reason)] += 1
            continue
        measured = float(row["peak_mem_gib"])
        what = f"{row['id']:16} {row['model'][-24:]:24} {row['method']:5} {row['shard_impl']:9}"
        what += f" x{row['num_gpus']:>2} micro-batch {row['micro_batch']:>2} {row['mem_metric']}"
        stack = "deepspeed" if row["shard_impl"] == "deepspeed" else "plain and FSDP"
        by_stack.setdefault(f"{stack}, {row['method']}", []).append(predicted / measured - 1)
        errors.append((predicted / measured - 1, f"{predicted:6.2f}/{measured:6.2f} {what}"))
    absolute = sorted(abs(error) for error, _ in errors)
    print(f"rows used {len(errors)}")
    for why, number in excluded.most_common():
        print(f"left out {number}: {why}")
    print(
        f"\nmemory: median {median(absolute):.1%}, 95th percentile "
        f"{quantiles(absolute, n=20, method='inclusive')[-1]:.1%}, largest {absolute[-1]:.1%}, "
        f"median signed {median(error for error, _ in errors):+.1%} (goals: 4 %, 12 %)\n"
    )
    for stack, own in sorted(by_stack.items()):
        print(f"{stack:20} {len(own):3} rows, median {median(map(abs, own)):.1%}")
    print("\nthe ten worst, predicted/measured in GiB")
    for error, what in sorted(errors, key=lambda pair: -abs(pair[0]))[:10]:
        print(f"{error:+7.1%} {what}")
    print(f"\n{PROVENANCE}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
