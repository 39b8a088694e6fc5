"""T5, an encoder-decoder, under the Trainer."""

from __future__ import annotations

import torch
from small_data import VOCABULARY, padded, samples
from transformers import (
    HfArgumentParser,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
torch.manual_seed(0)
config = T5Config(
    vocab_size=VOCABULARY,
    d_model=32,
    d_kv=8,
    d_ff=64,
    num_layers=2,
    num_heads=4,
    dropout_rate=0.0,
    decoder_start_token_id=0,
)
rows = [{"input_ids": row} for row in samples()]
model = T5ForConditionalGeneration(config)
Trainer(model=model, args=args, train_dataset=rows, data_collator=padded).train()
