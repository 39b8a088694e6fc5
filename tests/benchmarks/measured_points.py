"""Measures trials of many architectures, lengths and techniques, to judge the predictor by.

    python tests/benchmarks/measured_points.py SET OUT.jsonl [--seconds 540]

SET is `llama` (each technique once, Llamas of 1.1 to 13 billion parameters) or `architectures`
(those of `models/`, to which no constant of the predictor was fitted). It goes on where OUT.jsonl
stops.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from trial_recorder import Case, Knobs, record

from autotune.question.workload import Method

MODELS = Path(__file__).parent / "models"
FULL, LORA, QLORA = Method.FULL, Method.LORA, Method.QLORA

CHECKPOINT: Knobs = {"checkpoint_interval": 1}
FUSED: Knobs = {"fused_kernels": True}
BF16: Knobs = {"master_weights": "bf16"}
ADAPTERS: Knobs = {"lora_rank": 16}

Point = tuple[str, Method, int, int, Knobs]
"""Model, method, sequence length, global batch, knobs; ZeRO-1 and micro-batch 4 unless named."""

LLAMA: Sequence[Point] = (
    ("1.1B", FULL, 1024, 8, {"micro_batch_size": 8} | FUSED),
    ("1.1B", FULL, 1024, 8, {"micro_batch_size": 8}),
    ("1.1B", FULL, 1024, 128, {"micro_batch_size": 32} | FUSED),
    ("1.1B", FULL, 1024, 128, {"zero_stage": 0, "micro_batch_size": 16} | FUSED),
    ("1.1B", FULL, 1024, 128, {"zero_stage": 2, "micro_batch_size": 32} | FUSED),
    (
        *("1.1B", FULL, 1024, 128),
        {"zero_stage": 3, "micro_batch_size": 32, "checkpoint_interval": 2} | FUSED,
    ),
    ("1.1B", FULL, 1024, 128, {"micro_batch_size": 64} | FUSED),
    ("1.1B", FULL, 1024, 32, {"zero_stage": 0, "micro_batch_size": 8, "optimizer": "adafactor"}),
    ("1.1B", FULL, 1024, 32, {"micro_batch_size": 8, "optimizer": "adamw_8bit"}),
    ("1.1B", FULL, 1024, 32, {"micro_batch_size": 8, "precision": "fp16"}),
    ("13B", LORA, 1024, 16, ADAPTERS | CHECKPOINT | FUSED),
    ("7B", QLORA, 1024, 8, ADAPTERS | CHECKPOINT | FUSED),
    ("1.1B", FULL, 1024, 32, {"micro_batch_size": 8, "offload_optimizer": "cpu"} | FUSED),
    (
        *("1.1B", FULL, 1024, 32),
        {"zero_stage": 2, "micro_batch_size": 8, "offload_optimizer": "cpu"} | FUSED,
    ),
)

ARCHITECTURES: Sequence[Point] = (
    # One plain run of each first, then what else can differ between them.
    ("qwen2-1.5b", FULL, 1024, 4, {}),
    ("qwen3-1.7b", FULL, 1024, 4, {}),
    ("gemma-2b", FULL, 1024, 2, {"micro_batch_size": 2}),
    ("pythia-1.4b", FULL, 1024, 8, {"micro_batch_size": 8}),
    ("opt-1.3b", FULL, 1024, 8, {"micro_batch_size": 8}),
    ("llama-3.2-1b", FULL, 1024, 8, {"micro_batch_size": 8}),
    ("gemma3-1b", FULL, 1024, 4, {}),
    ("gpt2-large", FULL, 1024, 8, {"micro_batch_size": 8}),
    ("qwen3-0.6b", FULL, 1024, 8, {"micro_batch_size": 8}),
    ("pythia-410m", FULL, 1024, 16, {"micro_batch_size": 16}),
    ("mixtral-small", FULL, 1024, 4, {}),
    ("qwen2-1.5b", FULL, 4096, 2, {"micro_batch_size": 2} | CHECKPOINT),
    ("qwen3-1.7b", FULL, 2048, 4, FUSED),
    ("gemma-2b", FULL, 1024, 4, CHECKPOINT | FUSED | BF16),
    ("pythia-1.4b", FULL, 2048, 4, CHECKPOINT),
    ("opt-1.3b", FULL, 2048, 4, CHECKPOINT | {"checkpoint_scope": "attention"}),
    ("llama-3.2-1b", FULL, 8192, 2, {"micro_batch_size": 2} | CHECKPOINT),
    ("llama-3.2-1b", FULL, 4096, 8, FUSED),
    ("gemma3-1b", FULL, 2048, 4, CHECKPOINT),
    ("gpt2-large", FULL, 512, 16, {"micro_batch_size": 16} | BF16),
    ("qwen3-0.6b", FULL, 512, 16, {"micro_batch_size": 16, "loss_tiles": 8}),
    ("pythia-410m", FULL, 512, 32, {"micro_batch_size": 32, "optimizer": "adamw_8bit"}),
    ("mistral-7b", LORA, 1024, 4, ADAPTERS | CHECKPOINT),
    ("qwen2-7b", LORA, 1024, 4, ADAPTERS | CHECKPOINT | FUSED),
    ("mistral-7b", QLORA, 2048, 4, ADAPTERS | CHECKPOINT),
    ("qwen2-1.5b", FULL, 1024, 8, {"zero_stage": 2, "loss_tiles": 4}),
    ("qwen3-1.7b", FULL, 1024, 4, {"zero_stage": 3}),
    ("pythia-1.4b", FULL, 1024, 16, {"zero_stage": 0}),
    ("opt-1.3b", FULL, 1024, 16, {"optimizer": "lion"}),
    ("llama-3.2-1b", FULL, 2048, 8, {"optimizer": "paged_adamw_8bit"}),
    ("gemma3-1b", FULL, 1024, 8, FUSED | BF16),
    ("qwen3-0.6b", FULL, 4096, 2, {"micro_batch_size": 2} | FUSED),
    ("qwen2-1.5b", FULL, 1024, 4, {"optimizer": "lion_8bit", "mlp_tiles": 4}),
    ("pythia-410m", FULL, 1024, 16, {"zero_stage": 3, "micro_batch_size": 8} | CHECKPOINT),
    ("opt-1.3b", LORA, 2048, 8, ADAPTERS),
    ("qwen3-1.7b", LORA, 2048, 8, ADAPTERS | FUSED),
    ("gemma-2b", LORA, 1024, 8, ADAPTERS | CHECKPOINT),
    ("pythia-1.4b", LORA, 2048, 4, ADAPTERS),
    ("qwen2-1.5b", QLORA, 2048, 4, ADAPTERS | FUSED),
    ("llama-3.2-1b", FULL, 1024, 4, {"torch_compile": True}),
    ("llama-3.2-1b", FULL, 512, 16, {"micro_batch_size": 1} | FUSED),
    ("qwen3-0.6b", FULL, 8192, 2, {"micro_batch_size": 1, "checkpoint_interval": 4}),
    ("qwen2-1.5b", FULL, 2048, 8, {"zero_stage": 2, "offload_optimizer": "cpu"} | CHECKPOINT),
    ("pythia-1.4b", FULL, 1024, 8, {"optimizer": "muon"}),
    ("opt-1.3b", FULL, 512, 16, {"zero_stage": 0, "optimizer": "adafactor"}),
    ("qwen3-1.7b", FULL, 1024, 8, {"zero_stage": 3, "offload_optimizer": "cpu"} | FUSED),
    ("llama-3.2-1b", FULL, 2048, 4, {"attention": "eager", "micro_batch_size": 2}),
    ("mixtral-small", FULL, 2048, 4, CHECKPOINT),
    ("pythia-410m", FULL, 2048, 16, {"precision": "fp16"}),
    ("gpt2-large", FULL, 1024, 16, CHECKPOINT | {"micro_batch_size": 16}),
    ("qwen2-7b", QLORA, 1024, 8, ADAPTERS | CHECKPOINT | {"optimizer": "paged_adamw_8bit"}),
    ("mistral-7b", LORA, 4096, 2, ADAPTERS | FUSED | {"micro_batch_size": 1}),
    ("qwen3-0.6b", FULL, 1024, 32, {"zero_stage": 2, "micro_batch_size": 16} | FUSED),
    ("gemma3-1b", FULL, 4096, 2, FUSED | {"micro_batch_size": 2, "optimizer": "sgd"}),
    ("qwen2-1.5b", FULL, 512, 8, {"micro_batch_size": 8, "precision": "fp32", "tf32": True}),
    ("llama-3.2-1b", FULL, 1024, 8, {"mlp_precision": "fp16", "zero_stage": 2}),
)

SETS = {"llama": LLAMA, "architectures": ARCHITECTURES}


def cases(points: Sequence[Point]) -> Iterator[Case]:
    """What the recorder is to run."""
    for model, method, seq_len, batch, knobs in points:
        whole = {"zero_stage": 1, "micro_batch_size": 4} | knobs
        yield Case(
            key=json.dumps([model, method, seq_len, batch, whole], sort_keys=True),
            model=str(MODELS / model) if (MODELS / model).is_dir() else model,
            method=method,
            seq_len=seq_len,
            global_batch_size=batch,
            knobs=whole,
            more={},
        )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=SETS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=3600.0)
    arguments = parser.parse_args()
    record(cases(SETS[arguments.set]), arguments.out, arguments.seconds)


if __name__ == "__main__":
    main()
