"""The Trainer of transformers, which evaluates, saves and logs as well."""

from __future__ import annotations

from small_data import Samples, llama, padded
from transformers import HfArgumentParser, Trainer, TrainingArguments

(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
trainer = Trainer(
    model=llama(),
    args=args,
    train_dataset=Samples(),
    eval_dataset=Samples(),
    data_collator=padded,
)
trainer.train()
trainer.save_model()
