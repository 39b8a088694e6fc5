from __future__ import annotations

from typing import Any

from autotune.predictor.activations import TokenBytes, token_bytes
from autotune.workload import load_model_shape


def bytes_of(model: str, **changes: Any) -> TokenBytes:
    settings: dict[str, Any] = {
        "element_bytes": 2,
        "has_fused_kernels": False,
        "lora_rank": 0,
        "lora_targets": ("all-linear",),
    }
    return token_bytes(load_model_shape(model), **settings | changes)


def test_liger_saves_the_growth_that_was_measured() -> None:
    # 1.1B on one H100, micro-batch 16 to 32 at sequence 1024: 20.22 GiB for 16,384 tokens.
    token = bytes_of("1.1B", has_fused_kernels=True)
    growth = 22 * token.layer + token.head + token.loss

    assert abs(growth / (20.22 * 2**30 / 16384) - 1) < 0.01


def test_unfused_layers_save_the_growth_that_was_measured() -> None:
    # As above, micro-batch 16 to 28: 26.53 GiB for 12,288 tokens.
    token = bytes_of("1.1B")
    growth = 22 * token.layer + token.head + token.loss

    assert abs(growth / (26.53 * 2**30 / 12288) - 1) < 0.01


def test_a_frozen_weight_needs_no_input_but_an_adapter_does() -> None:
    everywhere = bytes_of("7B", lora_rank=8)
    attention_only = bytes_of("7B", lora_rank=8, lora_targets=("q_proj", "v_proj"))

    assert attention_only.layer < everywhere.layer < bytes_of("7B").layer


def test_relu_shares_its_output_with_the_next_layer() -> None:
    shape = load_model_shape("125M")

    assert bytes_of("125M").layer < 2 * (8 * shape.hidden_size + shape.intermediate_size) + 100
