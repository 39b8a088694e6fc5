"""LoRA: adapters on the layers that are named, scaled by alpha / rank, trained in every layer."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RunTrial
from one_batch import TOKENS
from small_models import WITH_DROPOUT, build, write_strategy
from torch import nn

import autotune
from autotune.errors import ConfigError
from autotune.question.workload import Method, Workload, load_model_shape
from autotune.space.strategy import Strategy

CHANGES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {},
    "gptj": {},
    "gpt_neo": {},
    "gpt_neox": {},
    # With projections in front of its layers and behind them, which no adapter belongs to.
    "opt": {"word_embed_proj_dim": 16},
    "phi": {},
    "phi3": {},
    "mixtral": {},
}


def _apply(model: nn.Module, folder: Path, **knobs: Any) -> Any:
    attention = str(model.config._attn_implementation)  # type: ignore[union-attr]
    strategy = Strategy.from_dict({"lora_rank": 4, "attention": attention} | knobs)
    return autotune.apply(model, write_strategy(folder, strategy, method=Method.LORA))


def _build(name: str) -> nn.Module:
    return build(name, **WITH_DROPOUT | CHANGES[name])


def _adapted(model: nn.Module) -> set[str]:
    """Names of the layers that have adapters, without the number of the decoder layer."""
    paths = {
        name.partition(".lora_A")[0] for name, _ in model.named_parameters() if "lora_" in name
    }
    paths = {path.partition(".lora_B")[0] for path in paths}
    return {path.split(".0.", 1)[1] for path in paths if ".0." in path}


LLAMA_ATTENTION = {f"self_attn.{part}_proj" for part in "qkvo"}
LLAMA_MLP = {f"mlp.{part}_proj" for part in ("gate", "up", "down")}


@pytest.mark.parametrize(
    ("name", "targets", "expected"),
    [
        ("llama", "attention", LLAMA_ATTENTION),
        ("llama", "mlp", LLAMA_MLP),
        ("llama", "", LLAMA_ATTENTION | LLAMA_MLP),
        ("llama", "q_proj,down_proj", {"self_attn.q_proj", "mlp.down_proj"}),
        # Its two c_proj are told apart.
        ("gpt2", "attention", {"attn.c_attn", "attn.c_proj"}),
        ("gpt2", "mlp", {"mlp.c_fc", "mlp.c_proj"}),
        ("gpt2", "c_proj", {"attn.c_proj", "mlp.c_proj"}),
        ("gpt_neox", "attention", {"attention.query_key_value", "attention.dense"}),
        ("opt", "mlp", {"fc1", "fc2"}),
        ("mixtral", "all-linear", LLAMA_ATTENTION),
    ],
)
def test_adapters_are_on_exactly_the_named_layers(
    name: str, targets: str, expected: set[str], tmp_path: Path
) -> None:
    assert _adapted(_apply(_build(name), tmp_path, lora_targets=targets)) == expected


@pytest.mark.parametrize("targets", ["all-linear", "attention", "mlp"])
@pytest.mark.parametrize("name", CHANGES)
def test_the_number_of_trained_parameters_is_as_predicted(
    name: str, targets: str, tmp_path: Path
) -> None:
    model = _build(name)
    model.config.save_pretrained(tmp_path)  # type: ignore[operator, union-attr]
    shape = load_model_shape(str(tmp_path))
    if shape.unknown_target((targets,)):
        with pytest.raises(ConfigError, match="no linear layer 'mlp'"):
            _apply(model, tmp_path, lora_targets=targets)
        return
    workload = Workload(model=shape, seq_len=16, global_batch_size=4, method=Method.LORA)
    applied = _apply(model, tmp_path, lora_targets=targets)
    trained = sum(p.numel() for p in applied.parameters() if p.requires_grad)
    assert trained == workload.num_trainable_parameters(4, targets) > 0


@pytest.mark.parametrize(("alpha", "scale"), [(0, 2.0), (4, 1.0), (6, 1.5), (32, 8.0)])
def test_the_output_of_adapters_is_scaled_by_alpha_over_rank(
    alpha: int, scale: float, tmp_path: Path
) -> None:
    model = _apply(_build("llama"), tmp_path, lora_alpha=alpha, lora_targets="q_proj")
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    hidden = torch.randn(3, 32)
    nn.init.normal_(layer.lora_B["default"].weight)
    low_rank = layer.lora_B["default"](layer.lora_A["default"](hidden))
    torch.testing.assert_close(layer(hidden), layer.base_layer(hidden) + scale * low_rank)


def test_a_name_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no linear layer 'query'; choose from all-linear, "):
        _apply(_build("llama"), tmp_path, lora_targets="query")


@pytest.mark.parametrize("interval", [1, 2])
@pytest.mark.parametrize("targets", ["all-linear", "attention", "mlp"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_checkpointing_gives_the_first_layers_adapters_their_gradients(
    name: str, targets: str, interval: int, tmp_path: Path
) -> None:
    def gradients(**knobs: int) -> dict[str, torch.Tensor]:
        model = _apply(_build(name), tmp_path, lora_targets=targets, **knobs)
        generator = torch.Generator().manual_seed(1)
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.data.normal_(std=0.1, generator=generator)
        for _ in range(2):  # the first forward finds out what layers return
            model.zero_grad()
            torch.manual_seed(2)
            model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        found = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
        assert all("lora_" in key for key in found)
        return found

    plain, checkpointed = gradients(), gradients(checkpoint_interval=interval)
    first = [gradient for key, gradient in checkpointed.items() if ".0." in key]
    assert len(first) > 2
    assert all(gradient.abs().max() > 0 for gradient in first)
    torch.testing.assert_close(checkpointed, plain)


LEARNING_RATE = 1e-2


def _losses(run_trial: RunTrial, workload: Workload, **knobs: Any) -> tuple[float, ...]:
    outcome = run_trial(
        workload=workload,
        timed_steps=4,
        learning_rate=LEARNING_RATE,
        lora_rank=4,
        **{"micro_batch_size": 2} | knobs,
    )
    assert outcome.measurement is not None, outcome.failure
    expected = workload.num_trainable_parameters(4, knobs.get("lora_targets", ""))
    assert outcome.measurement.num_trainable_parameters == expected
    losses = outcome.measurement.losses
    assert len(losses) >= 5
    assert all(map(math.isfinite, losses))
    return losses


@pytest.mark.slow
def test_adapters_learn_the_same_under_zero3_on_two_ranks(
    run_trial: RunTrial, tiny: Workload
) -> None:
    workload = replace(tiny, method=Method.LORA)
    knobs = {"precision": "fp32", "lora_targets": "attention", "lora_alpha": 16}
    plain = _losses(run_trial, workload, **knobs)
    divided = _losses(run_trial, workload, zero_stage=3, checkpoint_interval=2, **knobs)
    num_common = min(len(plain), len(divided))
    assert divided[:num_common] == pytest.approx(plain[:num_common], rel=1e-4)
    other_scale = _losses(run_trial, workload, **knobs | {"lora_alpha": 4})
    # It can only show once there is something to scale: adapters begin at zero.
    assert other_scale[0] == pytest.approx(plain[0], rel=1e-6)
    assert other_scale[-1] != pytest.approx(plain[-1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["attention", "mlp"])
def test_qlora_trains_with_checkpoints_and_some_targets(
    run_trial: RunTrial, tiny: Workload, targets: str
) -> None:
    workload = replace(tiny, method=Method.QLORA)
    losses = _losses(
        run_trial, workload, zero_stage=1, checkpoint_interval=1, lora_targets=targets
    )
    assert losses[-1] < losses[0]


SMALL_DEEPSEEK: dict[str, Any] = {
    "model_type": "deepseek_v2",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_adapters_on_experts_train_as_many_parameters_as_are_counted(
    run_trial: RunTrial, tmp_path: Path, zero_stage: int
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMALL_DEEPSEEK))
    workload = Workload(
        model=load_model_shape(str(tmp_path)),
        seq_len=16,
        global_batch_size=4,
        method=Method.LORA,
    )
    assert workload.model.num_expert_adapters(4, ("all-linear",)) > 0
    losses = _losses(run_trial, workload, zero_stage=zero_stage, precision="fp32")
    assert losses[-1] < losses[0]
