"""TRL's SFTTrainer on samples of natural length: what a user would write, with a meter of its own.

    torchrun --nproc-per-node 1 sft_natural_lengths.py --output_dir out --max_steps 12 ...

Lengths are log-normal with a mean of about 380 of 1,024 tokens. The meter is a callback: seconds
and real tokens of each optimizer step after the third, and the allocator's peak, as a JSON line.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    HfArgumentParser,
    LlamaConfig,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl import SFTConfig, SFTTrainer

SIZES = {
    "1.1B": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
    },
    "8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 500,
        "max_position_embeddings": 2048,
    },
}


@dataclass
class Own:
    """Arguments beside SFTConfig's."""

    size: str = "tiny"
    lora: bool = False
    longest: int = 1024
    mean: float = 380.0
    num_samples: int = 20_000


class Meter(TrainerCallback):
    """Times optimizer steps by itself, outside of any tuner."""

    def __init__(self, lengths: list[int]) -> None:
        self._lengths = np.array(lengths)
        self._times: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One optimizer step has ended."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._times.append(time.perf_counter())

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Print what was measured."""
        steps = np.diff(self._times)[2:]
        samples = args.per_device_train_batch_size * args.gradient_accumulation_steps
        samples *= args.world_size
        rate = samples / steps.mean() if len(steps) else 0.0
        peak = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
        if int(os.environ.get("RANK", "0")) == 0:
            print(
                json.dumps(
                    {
                        "samples_per_second": rate,
                        # The sampler shuffles: the mean length stands for each step's.
                        "real_tokens_per_second": rate * float(self._lengths.mean()),
                        "steps": len(steps),
                        "peak_reserved_gib": peak / 2**30,
                        "per_device_train_batch_size": args.per_device_train_batch_size,
                        "gradient_accumulation_steps": args.gradient_accumulation_steps,
                        "padding_free": args.padding_free,
                        "packing": args.packing,
                    }
                ),
                flush=True,
            )


def main() -> None:
    """Train."""
    own, args = HfArgumentParser((Own, SFTConfig)).parse_args_into_dataclasses()
    draw = np.random.default_rng(0)
    sigma = 0.7
    drawn = draw.lognormal(np.log(own.mean) - sigma**2 / 2, sigma, own.num_samples)
    lengths = np.clip(drawn, 16, own.longest).astype(int).tolist()
    size = SIZES[own.size]
    vocabulary = size["vocab_size"]
    data = Dataset.from_list(
        [{"input_ids": draw.integers(3, vocabulary, length).tolist()} for length in lengths]
    )
    torch.manual_seed(0)
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**size), dtype=dtype)
    adapters = None
    if own.lora:
        from peft import LoraConfig

        adapters = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    from tokenizers import Tokenizer, models

    words = {f"w{number}": number for number in range(8)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w1")),
        pad_token="w0",
        eos_token="w2",
        unk_token="w1",
    )
    if args.padding_free and not args.packing:
        args.max_length = None
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=adapters,
        callbacks=[Meter(lengths)],
    )
    trainer.train()


if __name__ == "__main__":
    main()
