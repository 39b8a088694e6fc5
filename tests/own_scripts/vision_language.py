"""A small LLaVA under the Trainer: images and tokens in one model, its tower frozen."""

from __future__ import annotations

import torch
from small_data import VOCABULARY
from transformers import (
    CLIPVisionConfig,
    HfArgumentParser,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
torch.manual_seed(0)
IMAGE = VOCABULARY - 1
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
heads = {"num_attention_heads": 4}
config = LlavaConfig(
    vision_config=CLIPVisionConfig(**sizes, **heads, image_size=32, patch_size=8),
    text_config=LlamaConfig(**sizes, **heads, vocab_size=VOCABULARY, max_position_embeddings=256),
    image_token_index=IMAGE,
    vision_feature_select_strategy="default",
)
draw = torch.Generator().manual_seed(0)
NUM_PATCHES = 16


def row(number: int) -> dict[str, torch.Tensor]:
    words = torch.randint(1, IMAGE, (20 + number % 30,), generator=draw)
    ids = torch.cat((torch.full((NUM_PATCHES,), IMAGE), words))
    return {"input_ids": ids, "pixel_values": torch.rand(3, 32, 32, generator=draw)}


def batch(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    ids = torch.nn.utils.rnn.pad_sequence([r["input_ids"] for r in rows], batch_first=True)
    mask = (ids != 0).long()
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": ids.masked_fill(mask == 0, -100),
        "pixel_values": torch.stack([r["pixel_values"] for r in rows]),
    }


model = LlavaForConditionalGeneration(config)
for parameter in model.model.vision_tower.parameters():
    parameter.requires_grad = False
rows = [row(number) for number in range(400)]
Trainer(model=model, args=args, train_dataset=rows, data_collator=batch).train()
