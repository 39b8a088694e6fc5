"""Loss scaling without ZeRO, on one process."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from small_models import build
from torch import nn

from autotune.techniques.loss_scale import LossScale
from autotune.techniques.master_weights import ScaledMasterWeights

SCALE = 2**12
LOSSES = {
    "the model's": lambda output: output.loss,
    "of the logits": lambda output: output.logits.square().mean(),
    "of both": lambda output: output.loss + output.logits.square().mean(),
    "of hidden states": lambda output: output.hidden_states[-1].square().mean(),
}


def _train(model: Any, kind: str) -> tuple[float, list[torch.Tensor]]:
    """The loss, and the gradients of all parameters that have one."""
    tokens = torch.randint(0, 64, (2, 8), generator=torch.Generator().manual_seed(0))
    loss = LOSSES[kind](model(input_ids=tokens, labels=tokens, output_hidden_states=True))
    loss.backward()
    return float(loss.detach()), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("kind", LOSSES)
def test_gradients_of_any_loss_are_scaled_once_and_the_loss_is_not(kind: str) -> None:
    model = build("llama")
    loss, plain = _train(model, kind)
    model.zero_grad()
    LossScale(model)
    scaled_loss, scaled = _train(model, kind)
    assert scaled_loss == loss
    # A power of two: no bit is lost.
    assert all(torch.equal(s, SCALE * p) for s, p in zip(scaled, plain, strict=True))


def test_a_scaled_loss_may_be_changed_in_place() -> None:
    # As HF Trainer does.
    model: Any = build("llama")
    LossScale(model)
    tokens = torch.arange(8)[None]
    loss = model(input_ids=tokens, labels=tokens).loss
    loss *= 2
    loss.backward()
    doubled = model.lm_head.weight.grad.clone()
    model.zero_grad()
    model(input_ids=tokens, labels=tokens).loss.backward()
    assert torch.equal(doubled, 2 * model.lm_head.weight.grad)


def test_unscaled_gradients_are_those_of_fp32_to_the_accuracy_of_fp16() -> None:
    model = build("llama")
    narrow = copy.deepcopy(model).half()
    _, plain = _train(model, "the model's")
    parameters = list(narrow.parameters())
    optimizer = ScaledMasterWeights(torch.optim.SGD(parameters, lr=1.0), LossScale(narrow))
    optimizer.loss_scale.max_norm = math.inf
    _train(narrow, "the model's")
    gradients, _ = optimizer.get_grads_for_reduction()
    assert optimizer.loss_scale.unscale(gradients)
    for gradient, expected in zip(gradients, plain, strict=True):
        assert (gradient - expected).norm() < 2**-8 * expected.norm()


@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_gradients_are_unscaled_and_then_clipped_as_torch_clips_them(size: float) -> None:
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2))]
    for number, parameter in enumerate(parameters):
        parameter.grad = size * (number + torch.ones_like(parameter))
    scaled = [SCALE * parameter.grad for parameter in parameters if parameter.grad is not None]
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    assert LossScale(nn.Linear(1, 1)).unscale(scaled)
    for parameter, gradient in zip(parameters, scaled, strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_another_scale_of_a_model_replaces_the_first() -> None:
    # As by a second optimizer for it.
    gradients = []
    for num_scales in (1, 2):
        model = build("llama")
        for _ in range(num_scales):
            LossScale(model)
        gradients.append(_train(model, "the model's")[1])
    assert all(map(torch.equal, *gradients))


def _optimizer(parameters: list[nn.Parameter]) -> ScaledMasterWeights:
    return ScaledMasterWeights(torch.optim.SGD(parameters, lr=1.0), LossScale(nn.Linear(1, 1)))


def test_scaled_gradients_too_small_for_fp16_reach_the_masters() -> None:
    parameters = [nn.Parameter(torch.ones(2).half()), nn.Parameter(torch.ones(2))]
    optimizer = _optimizer(parameters)
    tiny = 2.0**-30
    assert not torch.tensor(tiny).half()
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, SCALE * tiny)
    gradients, of_experts = optimizer.get_grads_for_reduction()
    assert [gradient.dtype for gradient in gradients] == [torch.float32] * 2
    assert of_experts == {}
    # As another rank's would be averaged in.
    for gradient in gradients:
        gradient.mul_(2**12)
    optimizer.step()
    assert not optimizer.overflow
    for group in optimizer.param_groups:
        for master in group["params"]:
            assert master.tolist() == pytest.approx([1 - 2.0**-18] * 2, abs=1e-7)


def test_the_scale_outlives_a_checkpoint() -> None:
    saved, loaded = (_optimizer([nn.Parameter(torch.ones(2).half())]) for _ in range(2))
    saved.loss_scale.scaler.cur_scale = 2.0**7
    loaded.load_state_dict(saved.state_dict())
    assert loaded.loss_scale.scaler.cur_scale == 2.0**7
