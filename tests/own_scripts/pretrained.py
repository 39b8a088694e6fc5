"""The Trainer with real weights from safetensors, loaded as every tutorial does."""

from __future__ import annotations

from small_data import Samples, padded
from transformers import (
    AutoModelForCausalLM,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)

(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
model = AutoModelForCausalLM.from_pretrained("weights")
Trainer(model=model, args=args, train_dataset=Samples(), data_collator=padded).train()
