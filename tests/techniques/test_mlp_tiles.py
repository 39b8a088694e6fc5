"""MLPs in tiles: the same losses and gradients, fewer bytes, on small models of transformers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from one_batch import count_calls, kept_bytes, peak_bytes, train
from small_models import EVERY_FORM, NUM_LAYERS, applied, build
from torch import nn

from autotune.errors import ConfigError
from autotune.question.workload import Method
from autotune.techniques.blocks import decoder_layers, mlp_blocks
from autotune.techniques.mlp_tiles import tile_mlps

LONG = torch.randint(0, 64, (2, 128), generator=torch.Generator().manual_seed(0))


def _mlps(model: nn.Module) -> list[nn.Module]:
    return mlp_blocks(decoder_layers(model, NUM_LAYERS))


# 16 tokens: in equal tiles, in unequal ones, in one token each.
@pytest.mark.parametrize("mlp_tiles", [2, 3, 16])
@pytest.mark.parametrize("model_type", [name for name in EVERY_FORM if name != "opt"])
def test_loss_and_gradients_are_those_without_tiles(model_type: str, mlp_tiles: int) -> None:
    loss, gradients = train(build(model_type))
    tiled_loss, tiled_gradients = train(applied(build(model_type), mlp_tiles=mlp_tiles))
    assert tiled_loss == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(tiled_gradients, gradients)


@pytest.mark.parametrize(
    ("checkpoint", "num_runs"),
    [
        ({}, 4 + 4),
        # torch stops recomputing a layer where the last tile would begin: it has its input.
        ({"checkpoint_interval": 1}, 4 + 3 + 4),
        ({"checkpoint_interval": 1, "checkpoint_scope": "attention"}, 4 + 4),
    ],
    ids=str,
)
def test_every_tile_is_recomputed_once_within_what_is_recomputed(
    checkpoint: dict[str, Any], num_runs: int
) -> None:
    model = applied(build("llama"), mlp_tiles=4, **checkpoint)
    train(model)
    assert count_calls(_mlps(model), lambda: train(model)) == num_runs * NUM_LAYERS


def test_the_peak_falls_with_the_number_of_tiles() -> None:
    # A wide MLP, so that its intermediates are the peak.
    def peak(mlp_tiles: int) -> int:
        model = build("llama", intermediate_size=1024, num_hidden_layers=1)
        model = applied(model, mlp_tiles=mlp_tiles, checkpoint_interval=1)
        train(model)
        return peak_bytes(model, LONG)

    peaks = [peak(tiles) for tiles in (1, 2, 4, 8)]
    assert all(more > less for more, less in pairwise(peaks))
    # [2, 128, 1024] in fp32: gate, its activation, up and their product.
    assert peaks[0] - peaks[3] > 3 * LONG.numel() * 1024 * 4 * 7 / 8


def test_nothing_of_the_mlp_is_kept_but_its_input() -> None:
    plain = kept_bytes(build("llama"), LONG)
    tiled = kept_bytes(applied(build("llama"), mlp_tiles=2), LONG)
    # Of [2, 128, 64]: gate, its activation, up and their product.
    assert plain - tiled == NUM_LAYERS * 4 * LONG.numel() * 64 * 4


def test_dropout_is_the_same_when_a_tile_is_recomputed() -> None:
    plain, tiled = (_mlps(build("gpt2", resid_pdrop=0.5))[0] for _ in range(2))
    hidden = torch.randn(2, 16, 32)
    tile_mlps([tiled], 2)
    torch.manual_seed(1)
    expected = torch.cat([plain(tile.contiguous()) for tile in hidden.tensor_split(2, dim=1)], 1)
    expected.sum().backward()
    torch.manual_seed(1)
    tiled(hidden).sum().backward()
    for parameter, reference in zip(tiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, reference.grad)


@pytest.mark.parametrize("checkpoint_interval", [0, 1])
def test_adapters_behind_a_frozen_embedding_have_their_gradients(checkpoint_interval: int) -> None:
    # The input of the first MLP needs no gradient where only MLPs are trained.
    def gradients(**knobs: Any) -> dict[str, torch.Tensor]:
        model = applied(
            build("llama"), method=Method.LORA, lora_rank=4, lora_targets="mlp", **knobs
        )
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
            elif "lora_A" in name:
                nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
        return train(model)[1]

    expected = gradients()
    assert len(expected) == 2 * 3 * NUM_LAYERS
    torch.testing.assert_close(
        gradients(mlp_tiles=3, checkpoint_interval=checkpoint_interval), expected
    )


def test_generation_runs_whole() -> None:
    model = applied(build("llama"), mlp_tiles=4).eval()
    run = lambda: model(input_ids=LONG[:, :8])  # noqa: E731
    assert count_calls(_mlps(model), run) == NUM_LAYERS


def test_tiles_put_on_twice_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"call autotune\.apply once"):
        applied(applied(build("llama"), mlp_tiles=2), mlp_tiles=2)


@pytest.mark.parametrize("model_type", ["opt", "biogpt", "xglm"])
def test_layers_without_an_mlp_module_are_refused(model_type: str) -> None:
    with pytest.raises(ConfigError, match="0 MLP modules"):
        applied(build(model_type), mlp_tiles=2)


def test_an_mlp_of_two_inputs_is_refused() -> None:
    model = applied(build("bloom"), mlp_tiles=2)
    with pytest.raises(ConfigError, match="BloomMLP takes 2"):
        train(model)
