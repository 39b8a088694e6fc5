"""Makes batches of samples of different lengths: padded, joined in one row, or packed.

The trials and the user's own training go through the same functions. Joined batches have the keys
that transformers' `DataCollatorWithFlattening` gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from autotune.errors import ConfigError
from autotune.knob_values import Batching
from autotune.space.strategy_file import read_strategy_file

__all__ = ["PAD_MULTIPLE", "collator", "joined", "pack", "padded"]

PAD_MULTIPLE = 8
"""Padded samples are as long as a multiple of this: tensor cores want it."""

_IGNORED = -100

Sample = Mapping[str, Any]


def collator(
    strategy_file: str | Path, *, pad_token_id: int = 0
) -> Callable[[Sequence[Sample]], dict[str, Any]]:
    """What makes a micro-batch of samples as the strategy was measured, also as `data_collator`.

    A sample has `input_ids` and may have `labels`, lists or tensors of token ids; `pack` gives it
    `lengths` too. Samples are cut off at the strategy's `seq_len`.

    Args:
        strategy_file: the `strategy.yaml` of an export.
        pad_token_id: what padding consists of, where there is any.

    Raises:
        ConfigError: the file is wrong.
    """
    exported = read_strategy_file(Path(strategy_file))
    strategy, seq_len = exported.strategy, exported.seq_len
    multiple = PAD_MULTIPLE * strategy.sequence_parallel_size

    def collate(samples: Sequence[Sample]) -> dict[str, Any]:
        ids, labels = zip(*(_tokens(sample, seq_len) for sample in samples), strict=True)
        if strategy.batching is not Batching.PADDED:
            parts = [part for sample in samples for part in _lengths(sample, seq_len)]
            return joined(torch.cat(ids), torch.cat(labels), parts)
        longest = max(map(len, ids))
        num_tokens = -(-longest // multiple) * multiple
        if strategy.pipeline_parallel_size > 1:
            num_tokens = seq_len
        elif strategy.sequence_parallel_size == 1:
            num_tokens = min(num_tokens, seq_len)
        return padded(ids, labels, num_tokens, pad_token_id=pad_token_id)

    return collate


def pack(samples: Iterable[Sample], strategy_file: str | Path) -> list[dict[str, Any]]:
    """Fill sequences of the strategy's `seq_len` tokens from a stream of samples, in order.

    A sample is cut where a sequence is full, and its rest begins the next one. What is left in the
    end fills no sequence and is dropped.

    Args:
        samples: as `collator` takes them.
        strategy_file: the `strategy.yaml` of an export.

    Returns:
        Samples for `collator`, each of `seq_len` tokens, with the `lengths` of its pieces.

    Raises:
        ConfigError: the file is wrong.
    """
    seq_len = read_strategy_file(Path(strategy_file)).seq_len
    packed: list[dict[str, Any]] = []
    ids: list[int] = []
    labels: list[int] = []
    lengths: list[int] = []
    for sample in samples:
        own_ids, own_labels = (each.tolist() for each in _tokens(sample, seq_len))
        while own_ids:
            room = seq_len - len(ids)
            ids += own_ids[:room]
            labels += own_labels[:room]
            lengths.append(len(own_ids[:room]))
            own_ids, own_labels = own_ids[room:], own_labels[room:]
            if len(ids) == seq_len:
                packed.append({"input_ids": ids, "labels": labels, "lengths": lengths})
                ids, labels, lengths = [], [], []
    return packed


def padded(
    ids: Sequence[torch.Tensor],
    labels: Sequence[torch.Tensor],
    num_tokens: int,
    *,
    pad_token_id: int = 0,
) -> dict[str, Any]:
    """Samples padded on the right to `num_tokens`, with their mask; padding has no labels."""
    shape = (len(ids), num_tokens)
    batch = {
        "input_ids": torch.full(shape, pad_token_id),
        "labels": torch.full(shape, _IGNORED),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
    }
    for row, (own_ids, own_labels) in enumerate(zip(ids, labels, strict=True)):
        batch["input_ids"][row, : len(own_ids)] = own_ids
        batch["labels"][row, : len(own_ids)] = own_labels
        batch["attention_mask"][row, : len(own_ids)] = 1
    return batch


def joined(ids: torch.Tensor, labels: torch.Tensor, lengths: Sequence[int]) -> dict[str, Any]:
    """Samples one after the other in a single row, with positions and bounds of each.

    Args:
        ids: of all samples, [tokens].
        labels: as `ids`; the first one of a sample would be learned by another, and is left out.
        lengths: tokens of each sample.
    """
    ends = torch.tensor(lengths).cumsum(0)
    labels = labels.clone()
    labels[torch.cat([ends.new_zeros(1), ends[:-1]])] = _IGNORED
    bounds = torch.nn.functional.pad(ends, (1, 0)).int()
    return {
        "input_ids": ids[None],
        "labels": labels[None],
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def _tokens(sample: Sample, seq_len: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels of one sample."""
    ids = torch.as_tensor(sample["input_ids"])[:seq_len]
    labels = torch.as_tensor(sample["labels"])[:seq_len] if "labels" in sample else ids
    if not len(ids) or len(labels) != len(ids):
        raise ConfigError(
            f"a sample needs at least one token, and a label of each; it has {len(ids)} tokens "
            f"and {len(labels)} labels"
        )
    return ids, labels


def _lengths(sample: Sample, seq_len: int) -> list[int]:
    """Of the pieces of a packed sample; of another one, its own."""
    own: Any = sample.get("lengths")
    return [min(seq_len, len(sample["input_ids"]))] if own is None else [int(n) for n in own]
