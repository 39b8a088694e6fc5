"""Joins the samples of a padded batch in one row, without padding, after the program's collator.

The keys are those of transformers' `DataCollatorWithFlattening` with bounds for attention kernels.
A sample's first token has no label: the token before it is another sample's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from autotune.techniques.collation import joined

__all__ = ["JoiningCollator", "join_samples"]

_OF_TOKENS = ("input_ids", "labels", "attention_mask")


class JoiningCollator:
    """Collates as another function does, and joins the samples.

    Args:
        collate: the program's own, which pads.
    """

    def __init__(self, collate: Callable[[Any], Mapping[str, Any]]) -> None:
        self._collate = collate

    def __call__(self, samples: Any) -> dict[str, Any]:
        """One batch."""
        return join_samples(self._collate(samples))


def join_samples(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch of samples of natural lengths in one row.

    Args:
        batch: `input_ids`, `labels` and `attention_mask`, each [samples, tokens], padded on
            either side.

    Returns:
        Ids and labels [1, tokens], positions within each sample, and the bounds of the samples.

    Raises:
        ValueError: the batch has other entries, whose rows would not be where samples are.
    """
    odd = [
        name for name, value in batch.items() if torch.is_tensor(value) and name not in _OF_TOKENS
    ]
    if odd or any(name not in batch for name in _OF_TOKENS):
        wrong = f"also {', '.join(odd)}" if odd else ", ".join(batch)
        raise ValueError(
            f"batching padding_free needs batches of input_ids, labels and attention_mask; these "
            f"have {wrong}"
        )
    is_real = batch["attention_mask"].bool()
    lengths = is_real.sum(dim=1)
    lengths = lengths[lengths > 0]
    return joined(batch["input_ids"][is_real], batch["labels"][is_real], lengths.tolist())
