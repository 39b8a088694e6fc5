"""Which attention an architecture may have, held against the classes of transformers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from autotune.errors import ConfigError
from autotune.knob_values import Attention, Precision
from autotune.machine.hardware import DeviceType, Hardware
from autotune.machine.software import Software
from autotune.question.workload import Workload
from autotune.space.compatibility import conflict, reference_strategy
from autotune.space.compatibility.attention import ATTENTIONS_MISSING
from autotune.space.strategy import Strategy

FLASH = Strategy(attention=Attention.FLASH)
BARE = Software(versions={})
WITH_FLASH = Software(versions={}, has_flash_attention=True)

COMMON = ("falcon", "gemma", "gpt2", "gpt_neox", "gptj", "llama", "mistral", "mixtral", "opt")
COMMON += ("phi", "phi3", "qwen2", "qwen3")


@pytest.fixture
def gpu(cpu_hardware: Hardware) -> Hardware:
    """One GPU."""
    return replace(cpu_hardware, device_type=DeviceType.CUDA, device_kind="L4", num_devices=1)


@pytest.mark.parametrize(
    "model_type", sorted(frozenset(COMMON).union(*ATTENTIONS_MISSING.values()))
)
def test_the_table_says_what_the_classes_of_transformers_say(model_type: str) -> None:
    model = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type, ""), None)
    if model is None:
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    assert model._supports_sdpa is (model_type not in ATTENTIONS_MISSING[Attention.SDPA])
    assert model._supports_flash_attn is (model_type not in ATTENTIONS_MISSING[Attention.FLASH])


def test_the_reference_of_an_architecture_without_sdpa_is_eager(
    tiny: Workload, cpu_hardware: Hardware
) -> None:
    gemma2 = replace(tiny, model=replace(tiny.model, model_type="gemma2"))
    assert reference_strategy(tiny, cpu_hardware).attention is Attention.SDPA
    assert reference_strategy(gemma2, cpu_hardware).attention is Attention.EAGER
    words = conflict(Strategy(), gemma2, cpu_hardware, BARE)
    assert words == "transformers has no sdpa attention for gemma2"


def test_flash_attention_is_refused_where_it_cannot_run(
    tiny: Workload, cpu_hardware: Hardware, gpu: Hardware
) -> None:
    wide = replace(tiny, model=replace(tiny.model, head_dim=512))
    assert conflict(FLASH, tiny, gpu, WITH_FLASH) is None
    assert "needs a GPU" in (conflict(FLASH, tiny, cpu_hardware, WITH_FLASH) or "")
    assert "pip install flash-attn" in (conflict(FLASH, tiny, gpu, BARE) or "")
    assert "at most 256" in (conflict(FLASH, wide, gpu, WITH_FLASH) or "")


def test_flash_attention_needs_16_bit() -> None:
    with pytest.raises(ConfigError, match="computes in 16 bit"):
        Strategy(attention=Attention.FLASH, precision=Precision.FP32)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_compiling_needs_what_makes_code_for_the_device(
    device: str, tiny: Workload, cpu_hardware: Hardware, gpu: Hardware
) -> None:
    hardware = cpu_hardware if device == "cpu" else gpu
    compiled = Strategy(torch_compile=True)
    able = Software(versions={}, **{f"has_{'cpu' if device == 'cpu' else 'gpu'}_inductor": True})
    assert conflict(compiled, tiny, hardware, able) is None
    assert "torch_compile needs" in (conflict(compiled, tiny, hardware, BARE) or "")


@pytest.mark.parametrize(
    "knobs",
    [
        {"zero_stage": 3},
        {
            "checkpoint_interval": 1,
            "checkpoint_scope": "mlp",
            "offload_checkpoints": "cpu",
        },
    ],
    ids=str,
)
def test_compiling_is_refused_where_the_layer_would_break_into_pieces(
    knobs: dict[str, object],
) -> None:
    Strategy.from_dict(knobs)
    with pytest.raises(ConfigError, match=r"torch_compile .* pieces"):
        Strategy.from_dict({"torch_compile": True} | knobs)
