"""A training script as a user of DeepSpeed writes it.

    deepspeed [--autotuning tune] plain_script.py --model CONFIG.json --seq-len 1024 \\
        --deepspeed --deepspeed_config ds_config.json [--steps 20] [--times TIMES.json] \\
        [--checkpointing] [--strategy strategy.yaml]

Trains a causal language model with random weights on random tokens. DeepSpeed's autotuner launches
it once for each of its experiments, and ends it when it has seen enough steps. With --times the
seconds of every optimizer step are written down. With --strategy two lines are added, those that
the README of an exported strategy names; nothing else here knows of autotune.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from transformers import AutoConfig, AutoModelForCausalLM


def main() -> None:
    """Train for a few steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--times", type=Path)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--strategy", type=Path)
    parser.add_argument("--local_rank", type=int, default=-1)
    deepspeed.add_config_arguments(parser)
    given = parser.parse_args()
    deepspeed.init_distributed()
    accelerator = get_accelerator()
    device = torch.device(accelerator.device_name())
    values = json.loads(given.model.read_text(encoding="utf-8"))
    config = AutoConfig.for_model(**values, use_cache=False)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if given.checkpointing:
        model.gradient_checkpointing_enable()
    optimizer = None
    if given.strategy is not None:
        import autotune

        model = autotune.apply(model, given.strategy)
        optimizer = autotune.create_optimizer(model, given.strategy)
    engine, _, _, _ = deepspeed.initialize(
        model=model,
        model_parameters=[p for p in model.parameters() if p.requires_grad],
        optimizer=optimizer,
        config=given.deepspeed_config,
    )
    engine.train()
    size = (engine.train_micro_batch_size_per_gpu(), given.seq_len)
    times_s = []
    for _ in range(given.steps):
        accelerator.synchronize()
        started = time.perf_counter()
        for _ in range(engine.gradient_accumulation_steps()):
            tokens = torch.randint(0, config.vocab_size, size, device=device)
            loss = engine(input_ids=tokens, labels=tokens).loss
            engine.backward(loss)
            engine.step()
        accelerator.synchronize()
        times_s.append(time.perf_counter() - started)
    if given.times is not None:
        given.times.write_text(json.dumps(times_s), encoding="utf-8")


if __name__ == "__main__":
    main()
