"""Small models and samples of natural lengths for the training scripts beside this file."""

from __future__ import annotations

import random
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

VOCABULARY = 500


def lengths(num: int, most: int = 120) -> list[int]:
    """As many lengths, the same ones every time."""
    draw = random.Random(0)
    return [draw.randrange(10, most) for _ in range(num)]


def samples(num: int = 2000) -> list[list[int]]:
    """Token ids; 0 is left for padding."""
    draw = random.Random(1)
    return [[draw.randrange(1, VOCABULARY) for _ in range(length)] for length in lengths(num)]


def padded(rows: list[Any]) -> dict[str, torch.Tensor]:
    """A batch with its mask and its labels."""
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row["input_ids"]) for row in rows], batch_first=True
    )
    mask = (ids != 0).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


class Samples(torch.utils.data.Dataset[dict[str, list[int]]]):
    """The samples, as a data set."""

    def __init__(self) -> None:
        self.rows = samples()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {"input_ids": self.rows[index]}


def llama() -> Any:
    """A Llama of 138,048 parameters, the same every time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=256,
    )
    return AutoModelForCausalLM.from_config(config)


def tokenizer() -> PreTrainedTokenizerFast:
    """Knows w0 to w499; w0 pads."""
    from tokenizers import Tokenizer, models

    words = {f"w{number}": number for number in range(VOCABULARY)}
    model = models.WordLevel(words, unk_token="w1")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(model), pad_token="w0", eos_token="w2", unk_token="w1"
    )
