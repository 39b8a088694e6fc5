"""Attention: the implementation that is asked for is the one that is called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RunTrial
from one_batch import TOKENS
from small_models import NUM_LAYERS, build, write_strategy
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt_neox import modeling_gpt_neox
from transformers.models.llama import modeling_llama

import autotune
from autotune.errors import ConfigError
from autotune.machine.hardware import DeviceType
from autotune.machine.software import detect_software
from autotune.question.workload import Method, Workload
from autotune.space.deepspeed_config import deepspeed_config
from autotune.space.strategy import Strategy
from autotune.worker.model import build_model


def _apply(model: nn.Module, folder: Path, **knobs: Any) -> nn.Module:
    method = Method.LORA if "lora_rank" in knobs else Method.FULL
    return autotune.apply(model, write_strategy(folder, Strategy.from_dict(knobs), method=method))


class _Calls:
    """Counts the calls of functions that stay what they are."""

    def __init__(self) -> None:
        self.num_calls = 0

    def of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.num_calls += 1
            return function(*args, **kwargs)

        return call


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, _Calls]:
    """Counters in the place of sdpa, and of Llama's and GPT-NeoX's eager attention."""
    sdpa, eager = _Calls(), _Calls()
    functions = ALL_ATTENTION_FUNCTIONS._global_mapping
    monkeypatch.setitem(functions, "sdpa", sdpa.of(functions["sdpa"]))
    for modeling in (modeling_llama, modeling_gpt_neox):
        function = eager.of(modeling.eager_attention_forward)
        monkeypatch.setattr(modeling, "eager_attention_forward", function)
    return {"sdpa": sdpa, "eager": eager}


@pytest.mark.parametrize("model_type", ["llama", "gpt_neox"])
@pytest.mark.parametrize("lora", [{}, {"lora_rank": 4}], ids=str)
def test_apply_switches_a_models_attention_and_leaves_its_loss(
    model_type: str,
    lora: dict[str, int],
    calls: dict[str, _Calls],
    tmp_path: Path,
) -> None:
    model = build(model_type)
    losses = {}
    for attention, other in (("eager", "sdpa"), ("sdpa", "eager")):
        counters = {name: counter.num_calls for name, counter in calls.items()}
        model = _apply(model, tmp_path, attention=attention, **lora)
        losses[attention] = model(input_ids=TOKENS, labels=TOKENS).loss.item()
        assert calls[attention].num_calls == counters[attention] + NUM_LAYERS
        assert calls[other].num_calls == counters[other]
    assert losses["eager"] == pytest.approx(losses["sdpa"], rel=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_trials_model_is_built_with_its_attention(
    attention: str, calls: dict[str, _Calls], tiny: Workload
) -> None:
    strategy = Strategy.from_dict({"attention": attention, "precision": "fp32"})
    config = deepspeed_config(tiny, strategy, num_devices=1, device_type=DeviceType.CPU)
    model = build_model(
        tiny, strategy, device=torch.device("cpu"), deepspeed_config=config, seed=0
    )
    model(input_ids=TOKENS)
    assert calls[attention].num_calls == tiny.model.num_hidden_layers
    assert sum(counter.num_calls for counter in calls.values()) == calls[attention].num_calls


@pytest.mark.skipif(detect_software().has_flash_attention, reason="it is installed here")
def test_flash_attention_that_is_not_installed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="attention flash_attention_2: "):
        _apply(build("llama"), tmp_path, attention="flash_attention_2")


def test_sdpa_is_refused_where_the_architecture_has_none(tmp_path: Path) -> None:
    model = build("gemma2")
    with pytest.raises(ConfigError, match="attention sdpa: Gemma2ForCausalLM"):
        _apply(model, tmp_path, attention="sdpa")
    _apply(model, tmp_path, attention="eager")


def test_a_model_that_cannot_be_switched_says_how_to_load_it(tmp_path: Path) -> None:
    model = build("bloom")
    with pytest.raises(ConfigError, match="attention sdpa"):
        _apply(model, tmp_path, attention="sdpa")


@pytest.mark.slow
def test_eager_attention_trains_as_sdpa_does(run_trial: RunTrial) -> None:
    def losses(attention: str) -> tuple[float, ...]:
        outcome = run_trial(
            precision="fp32", attention=attention, timed_steps=4, learning_rate=1e-3
        )
        assert outcome.measurement is not None, outcome.failure
        return outcome.measurement.losses

    eager, sdpa = losses("eager"), losses("sdpa")
    num_common = min(len(eager), len(sdpa))
    assert num_common >= 5
    assert eager[:num_common] == pytest.approx(sdpa[:num_common], rel=1e-5)
