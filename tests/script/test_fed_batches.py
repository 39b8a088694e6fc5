"""What a program feeds its model, counted from real calls of a module."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from autotune.script.fed_batches import FedBatches, StepFigures


class Model(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing."""


def fed(*batches: dict[str, Any], positional: tuple[Any, ...] = ()) -> tuple[FedBatches, Any]:
    watched, model = FedBatches(), Model()
    watched.watch(model)
    for batch in batches:
        model(*positional, **batch)
    return watched, watched.end_step()


IDS = torch.tensor([[5, 6, 7, 0], [8, 9, 0, 0]])


def test_a_mask_tells_padding() -> None:
    watched, step = fed({"input_ids": IDS, "attention_mask": (IDS != 0).long()})
    expected = StepFigures(
        num_batches=1, rows=2, real_tokens=5.0, padded_tokens=8.0, longest_row=4
    )
    assert step == expected
    assert watched.lengths == [3, 2]
    assert not watched.is_joined


def test_without_a_mask_labels_tell_what_follows_the_last_token() -> None:
    # The first token is a prompt's, which is not learned and yet no padding.
    labels = torch.tensor([[-100, 6, 7, -100], [-100, 9, -100, -100]])
    watched, step = fed({"input_ids": IDS, "labels": labels})
    assert (step.real_tokens, watched.lengths) == (5.0, [3, 2])


def test_positions_tell_joined_samples_apart() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1, 0]])
    ids = torch.arange(6)[None]
    watched, step = fed({"input_ids": ids, "position_ids": positions})
    assert watched.lengths == [3, 2, 1]
    assert watched.is_joined
    assert (step.rows, step.real_tokens, step.padded_tokens) == (1, 6.0, 6.0)


def test_ids_alone_are_all_real() -> None:
    _, step = fed({"input_ids": IDS})
    assert step.real_tokens == 8
    _, step = fed({}, positional=(IDS,))
    assert step.real_tokens == 8


def test_images_are_rows_without_tokens() -> None:
    _, step = fed({"pixel_values": torch.zeros(3, 3, 8, 8), "labels": torch.zeros(3)})
    assert (step.rows, step.real_tokens, step.longest_row) == (3, 0.0, 0)


def test_what_runs_without_gradients_feeds_nothing() -> None:
    with torch.no_grad():
        _, step = fed({"input_ids": IDS})
    assert step.num_batches == 0


def test_a_step_begins_anew() -> None:
    watched, _ = fed({"input_ids": IDS})
    assert watched.end_step().num_batches == 0
