"""What `autotune.apply` does to a user's own model of transformers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from one_batch import TOKENS, train
from small_models import NUM_LAYERS, WITH_DROPOUT, build, write_strategy
from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import autotune
from autotune.errors import ConfigError
from autotune.question.workload import Method
from autotune.space.strategy import Strategy


class _TupleLayer(LlamaDecoderLayer):
    """A decoder layer as they were until transformers 4.54, and as custom models still have."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return (super().forward(*args, **kwargs),)


def _tuple_llama() -> Any:
    model: Any = build("llama")

    class Unpacking(nn.ModuleList):
        """The old model loop took `layer_outputs[0]`."""

        def __getitem__(self, index: Any) -> Any:
            layers = list(self)
            return [
                lambda *a, layer=layer, **k: layer(*a, **k)[0]
                for layer in (layers[index] if isinstance(index, slice) else [layers[index]])
            ]

    model.model.layers = Unpacking(_TupleLayer(model.config, i) for i in range(NUM_LAYERS))
    return model


MODELS: dict[str, Callable[[], Any]] = {
    "llama": partial(build, "llama"),
    "tuple_llama": _tuple_llama,
    "gpt2": partial(build, "gpt2", **WITH_DROPOUT),
    "gpt_neox": partial(build, "gpt_neox"),
    # Its layers take different masks in turn.
    "gemma2": partial(build, "gemma2"),
}


def _file(folder: Path, method: Method = Method.FULL, **knobs: Any) -> Path:
    return write_strategy(folder, Strategy.from_dict(knobs), method=method)


@pytest.mark.parametrize("interval", [1, 2, 3, 4])
@pytest.mark.parametrize("name", MODELS)
def test_checkpointing_leaves_loss_and_gradients_as_they_are(
    name: str, interval: int, tmp_path: Path
) -> None:
    model = MODELS[name]()
    loss, gradients = train(model)
    # transformers has no sdpa for Gemma 2.
    attention = str(model.config._attn_implementation)
    file = _file(tmp_path, checkpoint_interval=interval, attention=attention)
    applied = autotune.apply(model, file)
    assert applied is model
    for _ in range(2):  # the first forward finds out what layers return
        applied_loss, applied_gradients = train(applied)
        assert applied_loss == pytest.approx(loss, rel=1e-6)
        torch.testing.assert_close(applied_gradients, gradients)


def test_checkpointing_keeps_the_input_of_every_kth_layer_only(tmp_path: Path) -> None:
    def num_saved_bytes(model: nn.Module) -> int:
        saved: list[int] = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: (saved.append(tensor.nbytes), tensor)[1], lambda tensor: tensor
        )
        with hooks:
            model(input_ids=TOKENS, labels=TOKENS)
        return sum(saved)

    model = build("llama")
    plain = num_saved_bytes(model)
    autotune.apply(model, _file(tmp_path, checkpoint_interval=2))
    train(model)
    assert num_saved_bytes(model) < 0.5 * plain


def test_apply_twice_is_refused(tmp_path: Path) -> None:
    model = autotune.apply(build("llama"), _file(tmp_path, checkpoint_interval=2))
    with pytest.raises(ConfigError, match=r"call autotune\.apply once"):
        autotune.apply(model, _file(tmp_path, checkpoint_interval=2))


def test_a_copy_of_an_applied_model_trains_its_own_weights(tmp_path: Path) -> None:
    model = autotune.apply(build("llama"), _file(tmp_path, checkpoint_interval=2))
    _, gradients = train(model)
    model.zero_grad()
    copied = copy.deepcopy(model)
    train(copied)
    _, copied_gradients = train(copied)
    torch.testing.assert_close(copied_gradients, gradients)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_parameter_names_and_class_names_stay(tmp_path: Path) -> None:
    model: Any = build("llama")
    names = list(model.state_dict())
    autotune.apply(model, _file(tmp_path, checkpoint_interval=2))
    assert list(model.state_dict()) == names
    assert isinstance(model.model.layers[0], LlamaDecoderLayer)
    assert type(model.model.layers[0]).__name__ == "LlamaDecoderLayer"


def test_the_models_own_checkpointing_gives_way_to_the_strategy(tmp_path: Path) -> None:
    model: Any = build("llama")
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True
    autotune.apply(model, _file(tmp_path, checkpoint_interval=0))
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def test_lora_trains_the_adapters_alone_with_checkpointing(tmp_path: Path) -> None:
    file = _file(tmp_path, Method.LORA, lora_rank=4, checkpoint_interval=2)
    wrapped = autotune.apply(build("llama"), file)
    train(wrapped)
    _, gradients = train(wrapped)
    assert len(gradients) == 2 * 7 * NUM_LAYERS
    assert all("lora_" in name for name in gradients)


def test_the_8_bit_optimizer_is_built_over_what_trains(tmp_path: Path) -> None:
    file = _file(tmp_path, Method.LORA, lora_rank=4, optimizer="adamw_8bit")
    optimizer = autotune.create_optimizer(autotune.apply(build("llama"), file), file)
    assert optimizer is not None
    assert len(optimizer.param_groups[0]["params"]) == 2 * 7 * NUM_LAYERS


def test_an_optimizer_that_the_json_names_is_left_to_deepspeed(tmp_path: Path) -> None:
    assert autotune.create_optimizer(build("llama"), _file(tmp_path, optimizer="adamw")) is None
