"""Parts of a profile put together against the counts of the same strategies."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from autotune.knob_values import Attention
from autotune.predictor.memory.activations import TokenBytes, token_bytes
from autotune.predictor.memory.traced_activations import traced_token_bytes
from autotune.profile import ModelProfile, Variant
from autotune.profile.trace import trace
from autotune.question.workload import load_model_shape
from autotune.space.strategy import Strategy

SEQ_LEN = 256


@cache
def profile(element_bytes: int) -> ModelProfile:
    variant = Variant(attention=Attention.SDPA, element_bytes=element_bytes)
    return trace(load_model_shape("7B"), variant, SEQ_LEN)


def traced(**knobs: Any) -> TokenBytes:
    return traced_token_bytes(
        {2: profile(2), 4: profile(4)},
        Strategy.from_dict(knobs),
        has_liger=False,
        is_tied=False,
        is_cpu=False,
    )


def counted(**knobs: Any) -> TokenBytes:
    strategy = Strategy.from_dict(knobs)
    return token_bytes(load_model_shape("7B"), strategy, lora_targets=(), seq_len=SEQ_LEN)


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"precision": "fp32"},
        {"mlp_tiles": 4},
        {"checkpoint_interval": 1},
        {"checkpoint_interval": 1, "checkpoint_scope": "attention"},
        {"checkpoint_interval": 1, "checkpoint_scope": "mlp"},
        {"checkpoint_interval": 1, "checkpoint_scope": "attention", "mlp_tiles": 2},
        {"checkpoint_interval": 1, "checkpoint_scope": "mlp", "offload_checkpoints": "cpu"},
        {"mlp_precision": "fp32"},
        {"attention_precision": "fp32"},
        {"norm_precision": "fp32"},
        {"tensor_parallel_size": 2},
        {"torch_compile": True},
        {"loss_tiles": 8},
        {"lm_head_precision": "fp32"},
    ],
    ids=str,
)
def test_parts_add_up_to_what_is_counted(knobs: dict[str, Any]) -> None:
    found, expected = traced(**knobs), counted(**knobs)

    assert found.layer_input == expected.layer_input
    assert found.layer == pytest.approx(expected.layer, rel=0.005)
    assert found.host_layer == expected.host_layer


@pytest.mark.parametrize("knobs", [{}, {"precision": "fp32"}, {"torch_compile": True}], ids=str)
def test_backward_is_as_wide_as_is_counted(knobs: dict[str, Any]) -> None:
    found, expected = (
        token.layer + token.layer_backward + token.head
        for token in (traced(**knobs), counted(**knobs))
    )

    assert found == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize("tiles", [1, 2, 8])
def test_tiles_divide_the_logits(tiles: int) -> None:
    assert traced(loss_tiles=tiles).loss == pytest.approx(
        counted(loss_tiles=tiles).loss, rel=0.001
    )


def test_what_is_recomputed_is_held_while_backward_is_there() -> None:
    plain, tiled = traced(), traced(mlp_tiles=4)
    part = traced(checkpoint_interval=1, checkpoint_scope="mlp")

    assert part.layer + part.recomputed == pytest.approx(plain.layer, rel=0.001)
    assert tiled.recomputed == pytest.approx(part.recomputed / 4, rel=0.001)
    assert tiled.layer_backward < plain.layer_backward


def test_without_a_profile_of_liger_layers_keep_what_compiled_ones_do() -> None:
    fused, compiled = traced(fused_kernels=True), traced(torch_compile=True)

    assert fused.layer == compiled.layer
    assert fused.loss == counted(fused_kernels=True).loss
