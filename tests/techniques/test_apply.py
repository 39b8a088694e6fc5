"""What `autotune.apply` does to a user's own model of transformers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import autotune
from autotune.errors import ConfigError
from autotune.strategy import Strategy
from autotune.strategy_file import StrategyFile
from autotune.workload import Method

TOKENS = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(0))
NUM_LAYERS = 4

SHAPE = {"vocab_size": 64, "num_hidden_layers": NUM_LAYERS, "num_attention_heads": 4}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1}


class _TupleLayer(LlamaDecoderLayer):
    """A decoder layer as they were until transformers 4.54, and as custom models still have."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return (super().forward(*args, **kwargs),)


def _llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=64, **SHAPE))


def _tuple_llama() -> nn.Module:
    model = LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=64, **SHAPE))

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


def _gpt2() -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_embd=32, n_layer=4, n_head=4, resid_pdrop=0.1, **SPECIAL)
    )


def _gpt_neox() -> nn.Module:
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(hidden_size=32, intermediate_size=64, **SHAPE, **SPECIAL)
    )


def _gemma2() -> nn.Module:
    """Its layers take different masks in turn."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "head_dim": 8, "num_key_value_heads": 2}
    return Gemma2ForCausalLM(Gemma2Config(sliding_window=8, **sizes, **SHAPE))


MODELS = [_llama, _tuple_llama, _gpt2, _gpt_neox, _gemma2]


def _file(folder: Path, method: Method = Method.FULL, **knobs: Any) -> Path:
    exported = StrategyFile(
        model="mine",
        seq_len=16,
        global_batch_size=4,
        method=method,
        lora_targets=("all-linear",),
        learning_rate=1e-5,
        strategy=Strategy.from_dict(knobs),
    )
    path = folder / "strategy.yaml"
    path.write_text(exported.to_yaml())
    return path


def _train(model: nn.Module) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one batch, dropout drawn from the same seed."""
    model.train()
    model.zero_grad()
    torch.manual_seed(1)
    loss = model(input_ids=TOKENS, labels=TOKENS).loss
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.item(), gradients


@pytest.mark.parametrize("interval", [1, 2, 3, 4])
@pytest.mark.parametrize("build", MODELS)
def test_checkpointing_leaves_loss_and_gradients_as_they_are(
    build: Any, interval: int, tmp_path: Path
) -> None:
    model = build()
    loss, gradients = _train(model)
    # transformers has no sdpa for Gemma 2.
    attention = str(model.config._attn_implementation)
    file = _file(tmp_path, checkpoint_interval=interval, attention=attention)
    applied = autotune.apply(model, file)
    assert applied is model
    for _ in range(2):  # the first forward finds out what layers return
        applied_loss, applied_gradients = _train(applied)
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

    model = _llama().train()
    plain = num_saved_bytes(model)
    autotune.apply(model, _file(tmp_path, checkpoint_interval=2))
    _train(model)
    assert num_saved_bytes(model) < 0.5 * plain


def test_apply_twice_is_refused(tmp_path: Path) -> None:
    model = autotune.apply(_llama(), _file(tmp_path, checkpoint_interval=2))
    with pytest.raises(ConfigError, match=r"call autotune\.apply once"):
        autotune.apply(model, _file(tmp_path, checkpoint_interval=2))


def test_a_copy_of_an_applied_model_trains_its_own_weights(tmp_path: Path) -> None:
    model = autotune.apply(_llama(), _file(tmp_path, checkpoint_interval=2))
    _, gradients = _train(model)
    model.zero_grad()
    copied = copy.deepcopy(model)
    _train(copied)
    _, copied_gradients = _train(copied)
    torch.testing.assert_close(copied_gradients, gradients)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_parameter_names_and_class_names_stay(tmp_path: Path) -> None:
    model = _llama()
    names = list(model.state_dict())
    autotune.apply(model, _file(tmp_path, checkpoint_interval=2))
    assert list(model.state_dict()) == names
    assert isinstance(model.model.layers[0], LlamaDecoderLayer)
    assert type(model.model.layers[0]).__name__ == "LlamaDecoderLayer"


def test_the_models_own_checkpointing_gives_way_to_the_strategy(tmp_path: Path) -> None:
    model = _llama()
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True
    autotune.apply(model, _file(tmp_path, checkpoint_interval=0))
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def test_lora_trains_the_adapters_alone_with_checkpointing(tmp_path: Path) -> None:
    file = _file(tmp_path, Method.LORA, lora_rank=4, checkpoint_interval=2)
    wrapped = autotune.apply(_llama(), file)
    _train(wrapped)
    _, gradients = _train(wrapped)
    assert len(gradients) == 2 * 7 * NUM_LAYERS
    assert all("lora_" in name for name in gradients)


def test_the_8_bit_optimizer_is_built_over_what_trains(tmp_path: Path) -> None:
    file = _file(tmp_path, Method.LORA, lora_rank=4, optimizer="adamw_8bit")
    optimizer = autotune.create_optimizer(autotune.apply(_llama(), file), file)
    assert optimizer is not None
    assert len(optimizer.param_groups[0]["params"]) == 2 * 7 * NUM_LAYERS


def test_an_optimizer_that_the_json_names_is_left_to_deepspeed(tmp_path: Path) -> None:
    assert autotune.create_optimizer(_llama(), _file(tmp_path, optimizer="adamw")) is None
