"""Joined samples: the loss of each is that of the padded batch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from autotune.script.joined_batches import JoiningCollator, join_samples
from autotune.techniques.joined_attention import attend_in_samples

sys.path.append(str(Path(__file__).parents[1] / "own_scripts"))

from small_data import llama, padded, samples


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_loss_of_joined_samples_is_that_of_padded_ones(side: str) -> None:
    batch = padded([{"input_ids": row} for row in samples(4)])
    if side == "left":
        batch = {name: value.flip(1) for name, value in batch.items()}
    own = llama()
    expected = own(**batch).loss
    attend_in_samples(own)
    joined = join_samples(batch)
    assert joined["input_ids"].shape == (1, int(batch["attention_mask"].sum()))
    found = own(**joined).loss
    if side == "right":
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.isfinite(found)


def test_batches_with_more_in_them_are_refused() -> None:
    batch = padded([{"input_ids": row} for row in samples(2)])
    with pytest.raises(ValueError, match="pixel_values"):
        JoiningCollator(lambda rows: batch | {"pixel_values": torch.zeros(2)})([])
