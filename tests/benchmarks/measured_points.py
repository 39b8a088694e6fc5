"""Points to hold the predictor against: trials of many architectures, lengths and techniques.

    python tests/benchmarks/measured_points.py SET OUT.jsonl [--seconds 540]

SET is `llama` (each technique once, Llamas of 1.1 to 13 billion parameters), `architectures`
(those of `models/`, for which no constant of the predictor was fitted) or `unseen` (others, and
other combinations, run after the predictor was finished). It goes on where OUT.jsonl stops.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from trial_recorder import SEQ_LEN_ON_CPU, Case, Knobs, record

from autotune.hardware import DeviceType, detect_hardware
from autotune.predictor import AnalyticPredictor
from autotune.software import detect_software
from autotune.space_file import load_search_space
from autotune.workload import Method, Workload, load_model_shape

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

UNSEEN: Sequence[tuple[str, Method, int, int]] = (
    # Model, method, sequence length, global batch; strategies are drawn.
    ("phi-2", FULL, 1024, 8),
    ("gemma2-2b", FULL, 1024, 4),
    ("olmo2-1b", FULL, 2048, 8),
    ("smollm2-1.7b", FULL, 1024, 16),
    ("starcoder2-3b", LORA, 2048, 4),
    ("stablelm-1.6b", FULL, 512, 16),
    ("qwen3-4b", QLORA, 1024, 8),
    ("smollm2-1.7b", LORA, 4096, 4),
)
_NUM_DRAWN = 12
_LONGEST_STEP_S = 2.5
"""Predicted; a draw that takes longer would leave no time for others."""

SETS = ("llama", "architectures", "unseen")


def cases(name: str) -> Iterator[Case]:
    """What the recorder is to run of one set."""
    yield from _drawn() if name == "unseen" else _listed({"llama": LLAMA}.get(name, ARCHITECTURES))


def _drawn() -> Iterator[Case]:
    """In each round one strategy of each question, from all that the space `full` has.

    Half of a question's draws are among the fastest fifth, where a search would look.
    """
    hardware, software = detect_hardware(), detect_software()
    is_cuda = hardware.device_type is DeviceType.CUDA
    draw, of_question = random.Random(0), []
    for model, method, seq_len, batch in UNSEEN:
        workload = Workload(
            model=load_model_shape(str(MODELS / model) if is_cuda else "tiny"),
            seq_len=seq_len if is_cuda else SEQ_LEN_ON_CPU,
            global_batch_size=batch * hardware.num_devices,
            method=method,
        )
        predictor = AnalyticPredictor(workload, hardware)
        space = load_search_space("full", workload, hardware, software)
        predicted = [(strategy, predictor.predict(strategy)) for strategy in space.strategies()]
        usable = [
            (strategy, prediction)
            for strategy, prediction in predicted
            if prediction.step_time_s <= _LONGEST_STEP_S
            and prediction.peak_device_bytes <= hardware.device_memory_bytes
            and not strategy.uses_nvme
        ]
        usable.sort(key=lambda pair: pair[1].step_time_s)
        fast = draw.sample(usable[: max(_NUM_DRAWN, len(usable) // 5)], _NUM_DRAWN // 2)
        others = draw.sample(usable, _NUM_DRAWN // 2)
        of_question.append([pair for both in zip(fast, others, strict=True) for pair in both])
    for turn in range(_NUM_DRAWN):
        for (model, method, seq_len, batch), strategies in zip(UNSEEN, of_question, strict=True):
            strategy = strategies[turn][0]
            yield Case(
                key=json.dumps([model, method, seq_len, batch, turn]),
                model=str(MODELS / model),
                method=method,
                seq_len=seq_len,
                global_batch_size=batch,
                knobs=strategy.to_dict(),
                more={},
            )


def _listed(points: Sequence[Point]) -> Iterator[Case]:
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
    record(cases(arguments.set), arguments.out, arguments.seconds)


if __name__ == "__main__":
    main()
