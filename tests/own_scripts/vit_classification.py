"""A vision transformer under the Trainer: it is fed no tokens."""

from __future__ import annotations

import torch
from transformers import (
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
torch.manual_seed(0)
config = ViTConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    image_size=32,
    patch_size=8,
    hidden_dropout_prob=0.0,
)
draw = torch.Generator().manual_seed(0)
rows = [
    {"pixel_values": torch.rand(3, 32, 32, generator=draw), "labels": i % 2} for i in range(400)
]
Trainer(model=ViTForImageClassification(config), args=args, train_dataset=rows).train()
