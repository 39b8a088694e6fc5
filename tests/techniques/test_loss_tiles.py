"""Logits and loss in tiles: the same losses and gradients, fewer bytes, labels shifted right."""

from __future__ import annotations

import copy
import inspect
from itertools import pairwise
from typing import Any

import pytest
import torch
from one_batch import LABELS, TOKENS, count_calls, kept_bytes, peak_bytes, train
from small_models import EVERY_FORM, applied, build
from torch import nn

from autotune.errors import ConfigError
from autotune.question.workload import Method

LONG = torch.randint(0, 64, (2, 128), generator=torch.Generator().manual_seed(0))


# 16 tokens: in equal tiles, in unequal ones, in one token each.
@pytest.mark.parametrize("loss_tiles", [2, 3, 16])
@pytest.mark.parametrize("model_type", EVERY_FORM)
def test_loss_and_gradients_are_those_without_tiles(model_type: str, loss_tiles: int) -> None:
    loss, gradients = train(build(model_type))
    tiled_loss, tiled_gradients = train(applied(build(model_type), loss_tiles=loss_tiles))
    assert tiled_loss == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(tiled_gradients, gradients)


@pytest.mark.parametrize("model_type", ["llama", "opt", "gemma2"])
@pytest.mark.parametrize(
    "more",
    [
        {"num_items_in_batch": 100},
        {"num_items_in_batch": torch.tensor(7)},
        {"shift_labels": LABELS.roll(-1, 1)},
        {"attention_mask": torch.ones_like(TOKENS)},
        {"position_ids": torch.arange(16).expand(2, 16)},
        {"ignore_index": 3},
    ],
    ids=str,
)
def test_what_a_trainer_hands_over_counts(model_type: str, more: dict[str, Any]) -> None:
    labels = LABELS.where(LABELS != -100, 3) if "ignore_index" in more else LABELS
    plain, tiled = build(model_type), applied(build(model_type), loss_tiles=3)
    loss = plain(TOKENS, labels=labels, **more).loss
    assert tiled(TOKENS, labels=labels, **more).loss.item() == pytest.approx(loss.item(), rel=1e-6)


def test_a_loss_that_is_scaled_scales_the_gradients() -> None:
    # As DeepSpeed does for accumulation and fp16.
    model = applied(build("llama"), loss_tiles=3)
    _, gradients = train(model)
    model.zero_grad()
    (model(input_ids=TOKENS, labels=LABELS).loss * 8).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, 8 * gradients[name])


def test_every_gradient_is_given_once_a_backward() -> None:
    # ZeRO reduces a gradient when it is given; the tied embedding's has two sources.
    model = applied(build("qwen2"), loss_tiles=4, mlp_tiles=4)
    given: list[str] = []
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: given.append(name))
    train(model)
    assert sorted(given) == sorted(name for name, _ in model.named_parameters())


def test_the_peak_falls_with_the_number_of_tiles() -> None:
    # A large vocabulary, so that the logits are the peak.
    def peak(loss_tiles: int) -> int:
        model = applied(build("llama", vocab_size=2048), loss_tiles=loss_tiles)
        train(model)
        return peak_bytes(model, LONG)

    peaks = [peak(tiles) for tiles in (1, 2, 4, 8)]
    assert all(more > less for more, less in pairwise(peaks))
    # Log-probabilities and the gradient of logits, [2, 128, 2048] in fp32.
    assert peaks[0] - peaks[3] > 2 * LONG.numel() * 2048 * 4 * 7 / 8


def test_no_logits_are_kept() -> None:
    plain = kept_bytes(build("llama", vocab_size=2048), LONG)
    tiled = kept_bytes(applied(build("llama", vocab_size=2048), loss_tiles=2), LONG)
    # The log-probabilities, in fp32.
    assert plain - tiled >= LONG.numel() * 2048 * 4


@pytest.mark.parametrize("loss_tiles", [1, 4])
def test_the_head_runs_tile_by_tile_and_again_in_backward(loss_tiles: int) -> None:
    model = applied(build("llama"), loss_tiles=loss_tiles)
    runs = 1 if loss_tiles == 1 else 2 * loss_tiles
    assert count_calls([model.lm_head], lambda: train(model)) == runs  # type: ignore[list-item]


def test_without_labels_and_in_evaluation_logits_are_given() -> None:
    model = applied(build("llama"), loss_tiles=4)
    plain = build("llama")
    torch.testing.assert_close(model(TOKENS).logits, plain(TOKENS).logits)
    output = model.eval()(TOKENS, labels=LABELS)
    torch.testing.assert_close(output.logits, plain.eval()(TOKENS, labels=LABELS).logits)


def test_the_output_is_a_tuple_where_one_is_asked_for() -> None:
    model = applied(build("llama"), loss_tiles=4)
    loss, *_ = model(TOKENS, labels=LABELS, return_dict=False)
    torch.testing.assert_close(loss, model(TOKENS, labels=LABELS).loss)


def test_names_and_signature_stay() -> None:
    plain, tiled = build("llama"), applied(build("llama"), loss_tiles=4)
    assert list(tiled.state_dict()) == list(plain.state_dict())
    assert type(tiled).__name__ == "LlamaForCausalLM"
    assert inspect.signature(tiled.forward) == inspect.signature(plain.forward)


def test_a_copy_trains_its_own_weights() -> None:
    model = applied(build("llama"), loss_tiles=4, mlp_tiles=2, checkpoint_interval=2)
    train(model)
    _, gradients = train(model)
    copied = copy.deepcopy(model)
    model.zero_grad()
    torch.testing.assert_close(train(copied)[1], gradients)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_adapters_have_the_same_gradients() -> None:
    plain, tiled = (
        applied(build("llama"), method=Method.LORA, lora_rank=4, loss_tiles=tiles)
        for tiles in (1, 4)
    )
    tiled.load_state_dict(plain.state_dict())
    torch.testing.assert_close(train(tiled)[1], train(plain)[1])


def test_tiles_put_on_twice_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"call autotune\.apply once"):
        applied(applied(build("llama"), loss_tiles=2), loss_tiles=2)


def test_a_router_that_adds_to_the_loss_is_refused() -> None:
    with pytest.raises(ConfigError, match="output_router_logits"):
        applied(build("mixtral", output_router_logits=True), loss_tiles=2)


def test_a_model_that_computes_its_loss_itself_is_refused() -> None:
    model = build("llama")

    class Own(type(model)):  # type: ignore[misc]
        def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            logits = super().forward(input_ids).logits
            return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    model.__class__ = Own
    with pytest.raises(ConfigError, match="does not compute its loss by transformers'"):
        applied(model, loss_tiles=2)
