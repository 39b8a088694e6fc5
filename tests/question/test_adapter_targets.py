"""Targets of LoRA that a model does not have are refused before launch."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autotune.errors import ConfigError
from autotune.machine.hardware import Hardware
from autotune.machine.software import Software
from autotune.question.workload import Method, Workload
from autotune.space.compatibility import conflict
from autotune.space.strategy import Strategy

SOFTWARE = Software(versions={})


def _conflict(tiny: Workload, hardware: Hardware, targets: str) -> str | None:
    workload = replace(tiny, method=Method.LORA)
    return conflict(Strategy(lora_rank=8, lora_targets=targets), workload, hardware, SOFTWARE)


@pytest.mark.parametrize("targets", ["", "all-linear", "attention", "mlp", "q_proj, down_proj"])
def test_layers_that_there_are_are_allowed(
    tiny: Workload, cpu_hardware: Hardware, targets: str
) -> None:
    assert _conflict(tiny, cpu_hardware, targets) is None


def test_a_layer_that_there_is_not_is_named(tiny: Workload, cpu_hardware: Hardware) -> None:
    words = _conflict(tiny, cpu_hardware, "q_proj,c_attn")
    assert words is not None
    assert words.startswith("lora_targets: tiny has no linear layer 'c_attn'; choose from all-")


def test_a_mixture_of_experts_has_no_linear_layers_in_its_mlp(
    tiny: Workload, cpu_hardware: Hardware
) -> None:
    moe = replace(tiny, model=replace(tiny.model, model_type="mixtral", num_experts=4))
    assert "'mlp'" in (_conflict(moe, cpu_hardware, "mlp") or "")
    assert _conflict(moe, cpu_hardware, "all-linear") is None


def test_a_group_may_stand_on_the_command_line_too(tiny: Workload) -> None:
    workload = replace(tiny, method=Method.LORA, lora_targets=("attention",))
    of_names = replace(workload, lora_targets=("q_proj", "k_proj", "v_proj", "o_proj"))
    assert workload.num_trainable_parameters(8) == of_names.num_trainable_parameters(8)
    with pytest.raises(ConfigError, match="--lora-targets: tiny has no linear layer 'heads'"):
        replace(workload, lora_targets=("heads",))


def test_a_strategys_own_targets_stand_before_the_workloads(tiny: Workload) -> None:
    workload = replace(tiny, method=Method.LORA)
    attention = workload.num_trainable_parameters(8, "attention")
    mlp = workload.num_trainable_parameters(8, "mlp")
    assert workload.num_trainable_parameters(8) == attention + mlp
    assert workload.num_trainable_parameters(16, "mlp") == 2 * mlp


@pytest.mark.parametrize("knob", [{"lora_alpha": 8}, {"lora_targets": "mlp"}], ids=str)
def test_knobs_of_adapters_need_adapters(knob: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="needs a lora_rank above 0"):
        Strategy.from_dict(knob)
