"""Adapters on routed experts, where `experts` is among the targets, in every implementation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import autotune_here
from small_models import build, small_workload
from test_adapter_counts import DEEPSEEK_V2_LITE

from autotune.errors import ConfigError
from autotune.knob_values import Experts
from autotune.question.workload import Method, Workload, load_model_shape
from autotune.space.strategy import Strategy
from autotune.techniques.apply import apply_strategy
from autotune.techniques.kernels import choose_experts

RANK = 4
TARGETS = ("all-linear", "experts")


def _trained(experts: Experts, targets: tuple[str, ...]) -> torch.nn.Module:
    strategy = Strategy(lora_rank=RANK, experts_implementation=experts)
    model = build("mixtral")
    return apply_strategy(model, strategy, method=Method.LORA, lora_targets=targets)


@pytest.mark.parametrize("experts", Experts)
def test_experts_learn_by_as_many_adapters_as_are_counted(experts: Experts) -> None:
    model = _trained(experts, TARGETS)
    tokens = torch.randint(3, 64, (2, 16))
    model(input_ids=tokens, labels=tokens).loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(parameter.grad is not None for parameter in trained.values())
    shape = small_workload("mixtral").model
    assert shape.num_lora_parameters(RANK, TARGETS) == sum(p.numel() for p in trained.values())
    on_experts = sum(p.numel() for name, p in trained.items() if ".experts." in name)
    assert shape.num_expert_adapters(RANK, TARGETS) == on_experts > 0


def test_the_choice_is_said_either_way() -> None:
    plain = replace(small_workload("mixtral", method=Method.LORA), lora_targets=("all-linear",))
    words = plain.adapters_in_words or ""
    assert "no adapters (--lora-targets all-linear,experts puts some there)" in words
    words = replace(plain, lora_targets=TARGETS).adapters_in_words or ""
    assert words.endswith("million of them in adapters on the routed experts.")


def test_a_dense_model_has_no_experts_to_name(tmp_path: Path) -> None:
    arguments = ("plan", "--model", "7B", "--method", "lora", "--hardware", "1xH100-80GB")
    ran = autotune_here(*arguments, "--lora-targets", "all-linear,experts", folder=tmp_path)
    assert ran.returncode == 2
    assert "has no linear layer 'experts'" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_experts_are_named_once_where_peft_has_names_for_them(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(DEEPSEEK_V2_LITE))
    shape = load_model_shape(str(tmp_path))
    asked = {"model": shape, "seq_len": 16, "global_batch_size": 2, "method": Method.LORA}
    with pytest.raises(ConfigError, match=r"PEFT adapts the experts of .* already"):
        Workload(**asked, lora_targets=TARGETS)  # type: ignore[arg-type]
    assert Workload(**asked, lora_targets=("attention", "experts"))  # type: ignore[arg-type]


@pytest.mark.parametrize("experts", Experts)
def test_an_implementation_is_chosen_for_a_model_that_was_built_with_another(
    experts: Experts,
) -> None:
    model = build("mixtral")
    tokens = torch.randint(3, 64, (2, 16))
    before = model(input_ids=tokens).logits
    choose_experts(model, experts)
    assert model.config._experts_implementation == experts  # type: ignore[union-attr]
    assert torch.allclose(model(input_ids=tokens).logits, before, rtol=1e-4, atol=1e-5)
