"""Samples of natural length on one GPU, padded, joined and packed: predicted beside measured.

    python tests/benchmarks/natural_lengths.py run OUT.jsonl [--seconds 540] [--only 1.1B]
    python tests/benchmarks/natural_lengths.py table OUT.jsonl

Lengths are log-normal. `run` writes each trial as it ends, goes on where OUT.jsonl stops and ends
before the given seconds are over. On the CPU a tiny model takes the place of the others, to try
the script. `table` prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

from trial_recorder import GIB, Case, Knobs, read_records, record

from autotune.machine.hardware import DeviceType, detect_hardware
from autotune.question.lengths import Lengths
from autotune.question.workload import Method

LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "tie_word_embeddings": False,
}
"""Llama 3.1 8B as far as memory and time are concerned."""

FUSED: Knobs = {"zero_stage": 0, "fused_kernels": True}
PADDED, JOINED, PACKED = ({"batching": name} for name in ("padded", "padding_free", "packed"))
FULL: tuple[Knobs, ...] = (
    FUSED | PADDED | {"micro_batch_size": 16},
    FUSED | JOINED | {"micro_batch_size": 16},
    FUSED | JOINED | {"micro_batch_size": 32},
    FUSED | PACKED | {"micro_batch_size": 16},
    FUSED | JOINED | {"micro_batch_size": 64},
    FUSED | PADDED | {"micro_batch_size": 8},
    FUSED | PADDED | {"micro_batch_size": 32},
    FUSED | JOINED | {"micro_batch_size": 16, "zero_stage": 1},
    FUSED | JOINED | {"micro_batch_size": 16, "checkpoint_interval": 1},
    {"zero_stage": 0, "micro_batch_size": 8} | PADDED,
    {"zero_stage": 0, "micro_batch_size": 8} | JOINED,
)
ADAPTERS: Knobs = FUSED | {"lora_rank": 16}
LORA: tuple[Knobs, ...] = (
    ADAPTERS | PADDED | {"micro_batch_size": 4},
    ADAPTERS | JOINED | {"micro_batch_size": 4},
    ADAPTERS | PACKED | {"micro_batch_size": 2},
    ADAPTERS | PADDED | {"micro_batch_size": 2},
    ADAPTERS | JOINED | {"micro_batch_size": 8, "checkpoint_interval": 2},
    ADAPTERS | PADDED | {"micro_batch_size": 4, "checkpoint_interval": 1},
    ADAPTERS | JOINED | {"micro_batch_size": 16, "checkpoint_interval": 1},
)


def log_normal(mean: float, deviation: float) -> Lengths:
    """Twenty thousand lengths with this mean, before any cut-off; always the same ones."""
    numbers = random.Random(18)
    middle = math.log(mean) - deviation**2 / 2
    drawn = (round(numbers.lognormvariate(middle, deviation)) for _ in range(20_000))
    return Lengths.of(min(max(2, each), 2**16) for each in drawn)


def cases(only: str, folder: Path) -> Iterator[Case]:
    """All trials, those that answer most first."""
    (folder / "config.json").write_text(json.dumps(LLAMA_8B))
    is_cuda = detect_hardware().device_type is DeviceType.CUDA
    questions = (
        ("1.1B", "1.1B", Method.FULL, 1024, 128, log_normal(380, 0.8), FULL),
        ("8B", str(folder), Method.LORA, 4096, 32, log_normal(1000, 0.9), LORA),
    )
    for name, model, method, seq_len, batch, lengths, all_knobs in questions:
        for knobs in all_knobs if only in ("", name) else ():
            if not is_cuda:
                # A model and samples that a CPU computes, without kernels for GPUs.
                knobs, lengths = knobs | {"fused_kernels": False}, log_normal(24, 0.8)
            yield Case(
                key=f"{name} {json.dumps(knobs, sort_keys=True)}",
                model=model,
                method=method,
                seq_len=seq_len,
                global_batch_size=batch,
                knobs=knobs,
                more={"lengths": str(lengths.cut(seq_len))},
                lengths=lengths,
            )


def table(out: Path) -> None:
    """Predicted beside measured."""
    print("| trial | real tokens/s | predicted | padded tokens/s | reserved GiB | predicted |")
    print("|---|---|---|---|---|---|")
    for line in read_records(out):
        measured = line.get("outcome", {}).get("measurement")
        if measured is None:
            failure = line.get("outcome", {}).get("failure") or {}
            print(f"| {line['key']} | {line.get('refused') or failure.get('message')} | | | | |")
            continue
        predicted = line["prediction"]
        print(
            f"| {line['key']} | {measured['tokens_per_second']:,.0f} "
            f"| {predicted['tokens_per_second']:,.0f} "
            f"| {measured['padded_tokens_per_second']:,.0f} "
            f"| {measured['peak_reserved_bytes'] / GIB:.2f} "
            f"| {predicted['peak_memory_bytes'] / GIB:.2f} |"
        )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("run", "table"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--only", default="", choices=("", "1.1B", "8B"))
    options = parser.parse_args()
    if options.action == "table":
        table(options.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        record(cases(options.only, Path(folder)), options.out, options.seconds)


if __name__ == "__main__":
    main()
