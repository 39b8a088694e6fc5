"""Linear layers in fp8: their numbers against bf16, and real engines with them."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import RunTrial
from small_models import build
from torch import nn

from autotune.errors import ConfigError
from autotune.question.workload import Method, Workload
from autotune.space.strategy import Strategy
from autotune.techniques.fp8 import Fp8Linear, use_fp8
from autotune.techniques.precision import set_precisions


def _relative_error(got: torch.Tensor | None, wanted: torch.Tensor | None) -> float:
    assert got is not None
    assert wanted is not None
    assert got.dtype is wanted.dtype
    got, wanted = got.detach().float(), wanted.detach().float()
    return float((got - wanted).norm() / wanted.norm())


def _in_fp8(linear: nn.Linear) -> nn.Linear:
    copied = copy.deepcopy(linear)
    use_fp8([copied], knob="mlp_precision")
    return copied


@pytest.mark.parametrize("num_rows", [32, 21])
def test_the_three_products_are_near_those_of_bf16(num_rows: int) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(64, 48).bfloat16()
    linear = _in_fp8(plain)
    rows = torch.randn(num_rows, 64).bfloat16()
    inputs = [rows.clone().requires_grad_() for _ in range(2)]
    gradient = torch.randn(num_rows, 48).bfloat16()
    outputs = [module(given) for module, given in zip((linear, plain), inputs, strict=True)]
    for output in outputs:
        output.backward(gradient)
    # Half a unit in the last place: 2**-4 of each number in e4m3, 2**-3 in e5m2, less in the mean.
    assert 0 < _relative_error(*outputs) < 2**-4
    assert 0 < _relative_error(inputs[0].grad, inputs[1].grad) < 2**-3
    assert 0 < _relative_error(linear.weight.grad, plain.weight.grad) < 2**-3
    assert _relative_error(linear.bias.grad, plain.bias.grad) == 0


def test_numbers_that_8_bit_can_hold_give_exact_products() -> None:
    plain = nn.Linear(32, 16, bias=False).bfloat16()
    with torch.no_grad():
        # The largest of e4m3, so that the scale is one.
        plain.weight.copy_(torch.eye(16, 32) * 448)
    rows = torch.full((4, 32), 448.0).bfloat16()
    assert torch.equal(_in_fp8(plain)(rows), plain(rows))


@pytest.mark.parametrize("size", [1e-6, 1e6])
def test_the_scale_follows_the_size_of_the_numbers(size: float) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(64, 48, bias=False).bfloat16()
    rows = torch.randn(8, 64).bfloat16() * size
    assert _relative_error(_in_fp8(plain)(rows), plain(rows)) < 2**-4


def test_zeros_stay_zeros() -> None:
    linear = _in_fp8(nn.Linear(32, 16, bias=False).bfloat16())
    assert not linear(torch.zeros(4, 32).bfloat16()).any()


def test_a_frozen_weight_gets_no_gradient() -> None:
    linear = _in_fp8(nn.Linear(32, 16).bfloat16()).requires_grad_(False)
    rows = torch.randn(4, 32).bfloat16().requires_grad_()
    linear(rows).sum().backward()
    assert rows.grad is not None
    assert linear.weight.grad is None


def test_a_side_that_is_no_multiple_of_16_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mlp_precision fp8 needs .* got 40 x 16"):
        use_fp8([nn.Linear(40, 16)], knob="mlp_precision")


@pytest.mark.parametrize(("group", "num_linears"), [("attention", 8), ("mlp", 6), ("lm_head", 1)])
def test_the_linear_layers_of_the_group_alone_change(group: str, num_linears: int) -> None:
    model = build("llama", num_hidden_layers=2).bfloat16()
    set_precisions(model, Strategy.from_dict({f"{group}_precision": "fp8"}))
    changed = [name for name, module in model.named_modules() if isinstance(module, Fp8Linear)]
    assert len(changed) == num_linears
    assert all({"attention": "attn"}.get(group, group) in name for name in changed)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_model_with_convolutions_for_linear_layers_is_refused() -> None:
    model = build("gpt2")
    with pytest.raises(ConfigError, match="mlp_precision fp8 needs linear layers"):
        set_precisions(model, Strategy.from_dict({"mlp_precision": "fp8"}))


FP8 = {"attention_precision": "fp8", "mlp_precision": "fp8", "lm_head_precision": "fp8"}


def _losses(run_trial: RunTrial, workload: Workload, **knobs: Any) -> tuple[float, ...]:
    """Of four steps of SGD, which shows gradients of a wrong size."""
    plain = {"micro_batch_size": 1, "optimizer": "sgd"}
    outcome = run_trial(workload=workload, learning_rate=0.1, **plain | knobs)
    assert outcome.measurement is not None, outcome.failure
    return outcome.measurement.losses[:4]


@pytest.fixture(scope="module")
def few_tokens(tiny: Workload) -> Workload:
    """The CPU takes a tenth of a second for a million products of e4m3."""
    return replace(tiny, seq_len=8, global_batch_size=2)


@pytest.fixture(scope="module")
def bf16_losses(run_trial: RunTrial, few_tokens: Workload) -> tuple[float, ...]:
    return _losses(run_trial, few_tokens)


@pytest.mark.slow
@pytest.mark.parametrize(
    "knobs",
    [
        {"zero_stage": 0},
        {"zero_stage": 1, "norm_precision": "fp32"},
        {"zero_stage": 2, "checkpoint_interval": 2, "mlp_tiles": 2, "loss_tiles": 2},
        {"zero_stage": 3},
        {"zero_stage": 3, "checkpoint_interval": 1},
    ],
    ids=str,
)
def test_fp8_learns_as_bf16_does(
    run_trial: RunTrial,
    few_tokens: Workload,
    bf16_losses: tuple[float, ...],
    knobs: dict[str, Any],
) -> None:
    losses = _losses(run_trial, few_tokens, **FP8, **knobs)
    assert losses == pytest.approx(bf16_losses, rel=5e-3)
    assert losses[-1] < 0.99 * losses[0]


@pytest.mark.slow
def test_lora_trains_beside_frozen_layers_in_fp8(
    run_trial: RunTrial, few_tokens: Workload
) -> None:
    workload = replace(few_tokens, method=Method.LORA)
    fp8 = {"attention_precision": "fp8", "mlp_precision": "fp8"}
    lora = {"lora_rank": 8, "zero_stage": 2}
    losses = _losses(run_trial, workload, **lora, **fp8)
    plain = _losses(run_trial, workload, **lora)
    assert losses == pytest.approx(plain, rel=5e-3)
    assert losses != plain
