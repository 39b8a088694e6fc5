"""How a batch is cut along its tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import build, write_strategy
from torch import nn

import autotune
from autotune.errors import ConfigError
from autotune.space.strategy import Strategy
from autotune.techniques.sequence_parallel import divide_attention, shard_tokens

IDS = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(0))
LABELS = IDS.where(torch.arange(12) > 3, -100)


def _embedding_only() -> nn.Module:
    """Without layers no token looks at another, so that each shard can stand alone."""
    return build("llama", num_hidden_layers=0)


def _shards(num_shards: int, **knobs: Any) -> list[dict[str, torch.Tensor]]:
    strategy = Strategy(sequence_parallel_size=num_shards, **knobs)
    return [shard_tokens(IDS, LABELS, strategy, shard=shard) for shard in range(num_shards)]


def _whole(shards: list[dict[str, torch.Tensor]], name: str) -> torch.Tensor:
    return torch.cat([shard[name] for shard in shards], dim=1)


def test_shards_are_the_batch_with_its_labels_shifted_once() -> None:
    shards = _shards(3)
    assert torch.equal(_whole(shards, "input_ids"), IDS)
    assert torch.equal(_whole(shards, "position_ids")[0], torch.arange(12))
    assert torch.equal(_whole(shards, "shift_labels")[:, :-1], LABELS[:, 1:])
    assert (_whole(shards, "shift_labels")[:, -1] == -100).all()


@pytest.mark.parametrize(("zero_stage", "merge"), [(2, torch.sum), (3, torch.mean)])
def test_losses_of_the_shards_make_the_loss_of_the_batch(zero_stage: int, merge: Any) -> None:
    model = _embedding_only()
    with torch.no_grad():
        whole = model(input_ids=IDS, labels=LABELS).loss
        shares = [model(**shard).loss for shard in _shards(2, zero_stage=zero_stage)]
    assert merge(torch.stack(shares)).item() == pytest.approx(whole.item(), rel=1e-6)


def test_tokens_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"does not divide the 12 tokens .* pad it on the right"):
        _shards(5)


def test_without_sequence_parallelism_the_batch_stays_as_it_was(tmp_path: Path) -> None:
    file = write_strategy(tmp_path, Strategy())
    batch = {"input_ids": IDS, "labels": LABELS}
    assert autotune.shard_batch(batch, file) == batch


def test_without_ranks_it_says_what_to_call_first() -> None:
    with pytest.raises(ConfigError, match=r"call deepspeed\.init_distributed\(\) before"):
        divide_attention(_embedding_only(), Strategy(sequence_parallel_size=2))
