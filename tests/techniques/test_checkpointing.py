"""What checkpointing keeps, recomputes and moves to the host, on small models of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from one_batch import TOKENS, count_calls, kept_bytes, peak_bytes, train
from small_models import EVERY_FORM, NUM_LAYERS, applied, build
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from autotune.errors import ConfigError
from autotune.space.compatibility.micro_step import WITHOUT_MLP_MODULE
from autotune.techniques.blocks import attention_blocks, decoder_layers, mlp_blocks

LAYERS: dict[str, Any] = {"checkpoint_interval": 1}
ATTENTION = LAYERS | {"checkpoint_scope": "attention"}
MLP = LAYERS | {"checkpoint_scope": "mlp"}
ON_HOST = LAYERS | {"offload_checkpoints": "cpu"}

LONG = torch.randint(0, 64, (2, 64), generator=torch.Generator().manual_seed(0))


def _layers(model: nn.Module) -> list[nn.Module]:
    return list(decoder_layers(model, NUM_LAYERS))


@pytest.mark.parametrize("knobs", [ATTENTION, MLP, ON_HOST, ATTENTION | ON_HOST], ids=str)
@pytest.mark.parametrize("model_type", EVERY_FORM)
def test_gradients_are_those_without_checkpoints(model_type: str, knobs: dict[str, Any]) -> None:
    if knobs == MLP and model_type in WITHOUT_MLP_MODULE:
        pytest.skip("refused: has no MLP module")
    loss, gradients = train(build(model_type))
    model = applied(build(model_type), **knobs)
    for _ in range(2):
        applied_loss, applied_gradients = train(model)
        assert applied_loss == loss
        torch.testing.assert_close(applied_gradients, gradients, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("knobs", "layers", "attentions", "mlps"),
    [
        ({}, 1, 1, 1),
        (LAYERS, 2, 2, 2),
        ({"checkpoint_interval": 2}, 2, 2, 2),
        (ATTENTION, 1, 2, 1),
        (MLP, 1, 1, 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_the_scope_alone_runs_twice(
    model_type: str, knobs: dict[str, Any], layers: int, attentions: int, mlps: int
) -> None:
    model = applied(build(model_type), **knobs)
    train(model)
    parts = _layers(model)
    for modules, runs in (
        (parts, layers),
        (attention_blocks(parts), attentions),
        (mlp_blocks(parts), mlps),
    ):
        assert count_calls(modules, lambda: train(model)) == runs * NUM_LAYERS


def test_recomputing_more_keeps_less() -> None:
    def kept(**knobs: Any) -> int:
        model = applied(build("llama"), **knobs)
        kept_bytes(model, LONG)
        return kept_bytes(model, LONG)

    plain, layers = kept(), kept(**LAYERS)
    assert plain > kept(**ATTENTION) > layers
    assert plain > kept(**MLP) > layers
    # Two layer inputs of [2, 64, 32] in fp32 less.
    assert layers - kept(checkpoint_interval=2) == 2 * LONG.numel() * 32 * 4


def test_recomputing_more_lowers_the_peak() -> None:
    def peak(**knobs: Any) -> int:
        model = applied(build("llama"), **knobs)
        train(model)
        return peak_bytes(model, LONG)

    plain, layers = peak(), peak(**LAYERS)
    assert plain > peak(**ATTENTION) > layers
    assert plain > peak(**MLP) > layers


@pytest.mark.parametrize("knobs", [LAYERS, {"checkpoint_interval": 2}, ATTENTION, MLP], ids=str)
def test_checkpoints_on_the_host_leave_the_inputs_to_be_freed(knobs: dict[str, Any]) -> None:
    def num_alive(**more: Any) -> int:
        """Inputs of what is recomputed that live between forward and backward."""
        model = applied(build("llama"), **knobs, **more)
        train(model)
        parts = _layers(model)
        if "checkpoint_scope" in knobs:
            is_attention = knobs["checkpoint_scope"] == "attention"
            parts = attention_blocks(parts) if is_attention else mlp_blocks(parts)
        interval = int(knobs["checkpoint_interval"])
        inputs: list[StorageWeakRef] = []

        def note(_: nn.Module, args: Any, kwargs: Any) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            inputs.append(StorageWeakRef(hidden.untyped_storage()))

        for part in parts[::interval]:
            part.register_forward_pre_hook(note, with_kwargs=True)
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
        assert len(inputs) == NUM_LAYERS // interval
        alive = sum(not storage.expired() for storage in inputs)
        loss.backward()
        return alive

    assert num_alive() == NUM_LAYERS // int(knobs["checkpoint_interval"])
    assert num_alive(offload_checkpoints="cpu") == 0


def test_checkpoints_on_the_host_keep_nothing_on_the_device() -> None:
    def kept(**knobs: Any) -> int:
        model = applied(build("llama"), **knobs)
        kept_bytes(model, LONG)
        return kept_bytes(model, LONG)

    assert kept(**LAYERS) - kept(**ON_HOST) == NUM_LAYERS * LONG.numel() * 32 * 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_checkpoints_on_the_host_free_device_memory() -> None:
    def allocated(**knobs: Any) -> int:
        model = applied(build("llama"), **knobs).cuda()
        tokens = LONG.cuda()
        before = torch.cuda.memory_allocated()
        loss = model(input_ids=tokens, labels=tokens).loss
        held = torch.cuda.memory_allocated() - before
        loss.backward()
        return held

    assert allocated(**ON_HOST) <= allocated(**LAYERS) - NUM_LAYERS * LONG.numel() * 32 * 4


@pytest.mark.parametrize("model_type", sorted(WITHOUT_MLP_MODULE))
def test_a_layer_without_an_mlp_module_is_refused(model_type: str) -> None:
    with pytest.raises(ConfigError, match="0 MLP modules"):
        applied(build(model_type), **MLP)
