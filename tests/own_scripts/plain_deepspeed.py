"""A plain DeepSpeed loop with an optimizer and a schedule of its own."""

from __future__ import annotations

import argparse

import deepspeed
import torch
from small_data import llama, padded, samples


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bs", type=int, default=2)
    parser.add_argument("--accum", type=int, default=2)
    parser.add_argument("--local_rank", type=int, default=0)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--save")
    args = parser.parse_args()
    deepspeed.init_distributed()
    model = llama()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    config = {
        "train_micro_batch_size_per_gpu": args.bs,
        "gradient_accumulation_steps": args.accum,
        "zero_optimization": {"stage": 1},
        "gradient_clipping": 0.5,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    rows = samples()
    place = 0
    for _ in range(args.steps):
        # All ranks and micro-batches of a step share its samples out, whatever their number.
        for micro in range(args.accum):
            first = place + (micro * world + rank) * args.bs
            batch = [{"input_ids": rows[(first + k) % len(rows)]} for k in range(args.bs)]
            loss = engine(**padded(batch)).loss
            engine.backward(loss)
            engine.step()
        place += args.accum * world * args.bs
        schedule.step()
        if rank == 0:
            print("rates", [group["lr"] for group in engine.optimizer.param_groups], flush=True)
    if args.save:
        engine.save_checkpoint(args.save)
    print("done")


if __name__ == "__main__":
    main()
