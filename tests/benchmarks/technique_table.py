"""The effect of each technique on one device: every knob alone against the same baseline.

    python tests/benchmarks/technique_table.py run OUT.jsonl [--seconds 540]
    python tests/benchmarks/technique_table.py table OUT.jsonl

`run` goes on where OUT.jsonl stops and ends before the given seconds are over. On the CPU a tiny
model takes the place of the others, to try the script. `table` prints Markdown.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trial_recorder import GIB, Case, Knobs, read_records, record

from autotune.question.workload import Method


@dataclass(frozen=True)
class Baseline:
    """One column of trials: a question, and what each technique is compared with."""

    model: str
    method: Method
    global_batch_size: int
    knobs: Knobs
    seq_len: int = 1024


ZERO1 = {"zero_stage": 1, "micro_batch_size": 8}
LORA = {"zero_stage": 1, "micro_batch_size": 4, "lora_rank": 16}

SMALL = Baseline("1.1B", Method.FULL, 16, ZERO1)
FULL_7B = Baseline(
    *("7B", Method.FULL, 8),
    {"zero_stage": 1, "micro_batch_size": 4, "checkpoint_interval": 1}
    | {"optimizer": "adamw_8bit", "master_weights": "bf16"},
)
LORA_7B = Baseline("7B", Method.LORA, 8, LORA)
QLORA_7B = Baseline("7B", Method.QLORA, 8, LORA)
QLORA_13B = Baseline("13B", Method.QLORA, 8, LORA | {"checkpoint_interval": 1})

CHECKPOINT: Knobs = {"checkpoint_interval": 1}
FUSED: Knobs = {"fused_kernels": True}
FP8: Knobs = {"attention_precision": "fp8", "mlp_precision": "fp8"}

CASES: tuple[tuple[Baseline, tuple[Knobs, ...]], ...] = (
    (
        SMALL,
        (
            {},
            CHECKPOINT,
            {"checkpoint_interval": 4},
            CHECKPOINT | {"checkpoint_scope": "attention"},
            CHECKPOINT | {"checkpoint_scope": "mlp"},
            CHECKPOINT | {"offload_checkpoints": "cpu"},
            {"mlp_tiles": 4},
            {"loss_tiles": 8},
            FUSED,
            {"attention": "eager"},
            FP8,
            {"mlp_precision": "fp8"},
            {"embedding_precision": "fp32", "norm_precision": "fp32"},
            {"mlp_precision": "fp16"},
            {"precision": "fp16"},
            {"precision": "fp32"},
            {"precision": "fp32", "tf32": True},
            {"zero_stage": 0},
            {"zero_stage": 2},
            {"zero_stage": 3},
            {"master_weights": "bf16"},
            {"optimizer": "adamw_8bit"},
            {"optimizer": "paged_adamw_8bit"},
            {"optimizer": "lion"},
            {"optimizer": "lion_8bit"},
            {"optimizer": "sgd"},
            {"optimizer": "muon"},
        ),
    ),
    (
        LORA_7B,
        (
            {},
            CHECKPOINT,
            CHECKPOINT | {"checkpoint_scope": "mlp"},
            FUSED,
            {"lora_targets": "attention"},
            FP8,
        ),
    ),
    (QLORA_7B, ({}, CHECKPOINT, FUSED, CHECKPOINT | {"optimizer": "paged_adamw_8bit"})),
    (QLORA_13B, ({}, FUSED)),
    (
        SMALL,
        (
            {"optimizer": "adafactor", "zero_stage": 0},
            {"reduce_bucket_size": 50_000_000},
            {"micro_batch_size": 16},
            {"zero_stage": 2, "offload_optimizer": "cpu"},
            {"zero_stage": 3, "offload_param": "cpu"},
            {"zero_stage": 3, "offload_optimizer": "cpu"},
            {"zero_stage": 3, "offload_optimizer": "cpu", "offload_ratio": 0.5},
            {"torch_compile": True},
        ),
    ),
    (
        FULL_7B,
        (
            {},
            FUSED,
            {"optimizer": "lion_8bit"},
            {"checkpoint_scope": "mlp"},
            {"offload_checkpoints": "cpu"},
            FP8,
            {"optimizer": "adafactor", "zero_stage": 0, "master_weights": "fp32"},
        ),
    ),
    (SMALL, (FP8 | {"torch_compile": True}, FUSED | {"torch_compile": True})),
)


def _cases() -> Iterator[Case]:
    for base, variants in CASES:
        for knobs in variants:
            yield Case(
                key=json.dumps([base.model, base.method, base.knobs, knobs], sort_keys=True),
                model=base.model,
                method=base.method,
                seq_len=base.seq_len,
                global_batch_size=base.global_batch_size,
                knobs=base.knobs | knobs,
                more={"base": base.knobs, "knobs": knobs},
            )


def table(out: Path) -> None:
    """Print one Markdown table a baseline."""
    rows = read_records(out)
    seen: list[str] = []
    for row in rows:
        group = json.dumps([row["model"], row["method"], row["base"]])
        if group in seen:
            continue
        seen.append(group)
        members = [r for r in rows if json.dumps([r["model"], r["method"], r["base"]]) == group]
        base = next((r for r in members if not r["knobs"] and _measured(r)), None)
        reference = _measured(base) if base else None
        print(f"\n### {row['model']}, {row['method']}, {row['seq_len']} tokens a sample\n")
        print(f"Baseline: {_in_words(row['base'])}, {row['global_batch_size']} samples a step.\n")
        print("| technique | tokens/s | allocated GiB | reserved GiB | J/token |")
        print("|---|---|---|---|---|")
        for member in members:
            print(_row(member, reference))


def _measured(record: Knobs) -> Knobs | None:
    measured: Knobs | None = record.get("outcome", {}).get("measurement")
    return measured


def _in_words(knobs: Knobs) -> str:
    return ", ".join(f"{name} {value}" for name, value in knobs.items()) or "baseline"


def _row(record: Knobs, reference: Knobs | None) -> str:
    name, measured = _in_words(record["knobs"]), _measured(record)
    if measured is None:
        failure = record.get("outcome", {}).get("failure")
        why = record.get("refused") or f"{failure['kind']}: {failure['message']}"
        return f"| {name} | {why} | | | |"

    def against(key: str) -> str:
        if reference is None or reference is measured or not reference.get(key):
            return ""
        return f" ({measured[key] / reference[key] - 1:+.0%})"

    energy = measured.get("energy_j_per_token")
    cells = (
        f"{measured['tokens_per_second']:,.0f}{against('tokens_per_second')}",
        f"{measured['peak_allocated_bytes'] / GIB:.2f}{against('peak_allocated_bytes')}",
        f"{measured['peak_reserved_bytes'] / GIB:.2f}{against('peak_reserved_bytes')}",
        f"{energy:.4f}{against('energy_j_per_token')}" if energy else "",
    )
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="run the trials")
    runs.add_argument("out", type=Path)
    runs.add_argument("--seconds", type=float, default=3600.0)
    tables = commands.add_parser("table", help="print what was recorded")
    tables.add_argument("out", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "run":
        record(_cases(), arguments.out, arguments.seconds)
    else:
        table(arguments.out)


if __name__ == "__main__":
    main()
