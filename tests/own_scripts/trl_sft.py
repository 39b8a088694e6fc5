"""TRL's SFTTrainer: padded, packed or padding-free, as its arguments say."""

from __future__ import annotations

from datasets import Dataset
from small_data import llama, samples, tokenizer
from transformers import HfArgumentParser
from trl import SFTConfig, SFTTrainer

(args,) = HfArgumentParser(SFTConfig).parse_args_into_dataclasses()
if args.padding_free:
    # TRL cuts samples where it pads or packs them alone.
    args.max_length = None
trainer = SFTTrainer(
    model=llama(),
    args=args,
    train_dataset=Dataset.from_list([{"input_ids": row} for row in samples()]),
    processing_class=tokenizer(),
)
trainer.train()
