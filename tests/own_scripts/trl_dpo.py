"""TRL's DPOTrainer, which has an engine for its reference model too."""

from __future__ import annotations

from datasets import Dataset
from small_data import llama, samples, tokenizer
from transformers import HfArgumentParser
from trl import DPOConfig, DPOTrainer

(args,) = HfArgumentParser(DPOConfig).parse_args_into_dataclasses()


def words(ids: list[int]) -> str:
    return " ".join(f"w{number}" for number in ids)


rows = samples(600)
pairs = [
    {"prompt": words(rows[i]), "chosen": words(rows[i + 1]), "rejected": words(rows[i + 2])}
    for i in range(0, 597)
]
trainer = DPOTrainer(
    model=llama(),
    ref_model=llama(),
    args=args,
    train_dataset=Dataset.from_list(pairs),
    processing_class=tokenizer(),
)
trainer.train()
