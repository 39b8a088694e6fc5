"""Traces against the counts that presets use, and against tensors counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_shapes import small_shape
from tiers import slow_but

from autotune.knob_values import Attention, Experts
from autotune.predictor.memory.activations import token_bytes
from autotune.profile import LayerProfile, ModelProfile, Variant
from autotune.profile.trace import trace
from autotune.question.presets import PRESETS
from autotune.question.workload import ModelShape, load_model_shape
from autotune.space.strategy import Strategy

SEQ_LEN = 256

SDPA = Variant(attention=Attention.SDPA, element_bytes=2)


def saved(layer: LayerProfile, *, part: str | None = None) -> float:
    """Bytes that a layer, or one part of it, keeps of one token."""
    return sum(s.token_bytes for s in layer.saved if part is None or part in s.parts)


def only_layer(shape: ModelShape, variant: Variant = SDPA) -> LayerProfile:
    [layer] = trace(shape, variant, SEQ_LEN).layers
    return layer


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash_attention_2"])
@pytest.mark.parametrize("preset", slow_but(("tiny", "125M", "7B"), PRESETS))
def test_presets_are_counted_as_their_code_is_traced(preset: str, attention: str) -> None:
    shape = load_model_shape(preset)
    variant = Variant(attention=Attention(attention), element_bytes=2)
    profile = trace(shape, variant, SEQ_LEN)
    strategy = Strategy.from_dict({"attention": attention})
    counted = token_bytes(shape, strategy, lora_targets=(), seq_len=SEQ_LEN)

    assert saved(profile.layers[0]) == pytest.approx(counted.layer, rel=0.005)
    assert profile.loss == pytest.approx(counted.loss, rel=0.001)
    assert profile.layers[0].count == shape.num_hidden_layers


@pytest.mark.parametrize("targets", ["all-linear", "attention", "mlp", "q_proj,v_proj"])
def test_adapters_are_counted_as_their_code_is_traced(targets: str) -> None:
    shape, names = load_model_shape("1.1B"), tuple(targets.split(","))
    variant = Variant(attention=Attention.SDPA, element_bytes=2, lora_rank=16, lora_targets=names)
    strategy = Strategy.from_dict({"lora_rank": 16})
    counted = token_bytes(shape, strategy, lora_targets=names, seq_len=SEQ_LEN)

    assert saved(only_layer(shape, variant)) == pytest.approx(counted.layer, rel=0.005)


def test_each_implementation_of_experts_keeps_what_its_code_keeps(tmp_path: Path) -> None:
    fields = {"num_local_experts": 4, "num_experts_per_tok": 2}
    shape = small_shape(tmp_path, "mixtral", **fields)
    layers = {
        experts: only_layer(
            shape, Variant(attention=Attention.SDPA, element_bytes=2, experts=experts)
        )
        for experts in Experts
    }
    grouped, batched, loop = (
        layers[experts] for experts in (Experts.GROUPED_MM, Experts.BATCHED_MM, Experts.EAGER)
    )
    # A copy of gate, up and down for each of two choices of a token, in 16 bit.
    copies = 2 * 2 * 3 * shape.hidden_size * shape.intermediate_size
    assert saved(batched) - saved(grouped) == pytest.approx(copies, rel=0.05)
    # Both keep the rows of all choices, and the loop where each row is.
    assert saved(loop) == pytest.approx(saved(grouped), rel=0.2)
    assert loop.forward["mlp"].num_kernels > 2 * grouped.forward["mlp"].num_kernels


def test_qwen3_norms_its_queries_and_keys(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 32}
    layer = only_layer(small_shape(tmp_path, "qwen3", **fields))
    queries, keys = 4 * 32, 2 * 32

    # Input; queries, keys, values, output and log-sum-exp; what two RMSNorms keep: the input in
    # fp32, its scale, and the normalized input.
    flash = 2 * (2 * queries + 2 * keys) + 4 * 4
    norms = (4 + 2) * (queries + keys) + 4 * (4 + 2)
    assert saved(layer, part="attention") == pytest.approx(2 * 64 + flash + norms, rel=0.01)


def test_gemma_norms_in_fp32_and_keeps_its_gelu(tmp_path: Path) -> None:
    layer = only_layer(small_shape(tmp_path, "gemma", num_key_value_heads=1, head_dim=32))

    # Input in fp32, normalized in fp32, twice a layer; and the scale of each.
    assert saved(layer, part="norm") == pytest.approx(2 * (8 * 64 + 4), rel=0.02)
    # Input, gate, its activation, up, their product.
    assert saved(layer, part="mlp") == 2 * (64 + 4 * 128)


def test_gpt_neox_runs_attention_and_mlp_side_by_side(tmp_path: Path) -> None:
    layer = only_layer(small_shape(tmp_path, "gpt_neox"))

    # LayerNorms keep their input, which both have in common, and two numbers each.
    assert 2 * 64 < saved(layer, part="norm") <= 2 * 64 + 2 * 2 * 4
    assert saved(layer, part="mlp") == 2 * (64 + 2 * 128)


def test_dropout_keeps_one_byte_an_element(tmp_path: Path) -> None:
    fields = {"ffn_dim": 128, "word_embed_proj_dim": 64}
    with_dropout = only_layer(small_shape(tmp_path, "opt", dropout=0.1, **fields))
    without = only_layer(small_shape(tmp_path, "opt", dropout=0.0, **fields))

    assert saved(with_dropout) - saved(without) == 2 * 64


def test_layers_of_two_kinds_are_told_apart(tmp_path: Path) -> None:
    shape = small_shape(
        tmp_path,
        "gemma3_text",
        num_hidden_layers=8,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=64,
    )
    profile = trace(shape, SDPA, SEQ_LEN)
    sliding, full = sorted(profile.layers, key=lambda layer: -layer.count)

    assert (sliding.count, full.count) == (7, 1)
    # A window is a mask, which the kernel wants as numbers, and keys for each query head.
    repeated = 2 * 2 * 2 * 16
    assert saved(sliding) - saved(full) == pytest.approx(2 * SEQ_LEN + repeated, rel=0.01)


def test_a_mixture_keeps_what_the_experts_of_a_token_do(tmp_path: Path) -> None:
    fields = {"num_key_value_heads": 2, "num_local_experts": 4}
    one, two = (
        only_layer(small_shape(tmp_path, "mixtral", num_experts_per_tok=num, **fields))
        for num in (1, 2)
    )

    assert saved(two, part="mlp") > saved(one, part="mlp") + 2 * 3 * 128


def test_capped_logits_take_another_copy(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 16}
    variant = Variant(attention=Attention.EAGER, element_bytes=2)
    capped = trace(small_shape(tmp_path, "gemma2", **fields), variant, SEQ_LEN)
    plain = trace(small_shape(tmp_path, "qwen3", **fields), variant, SEQ_LEN)

    assert plain.loss == pytest.approx(12 * 512, rel=0.01)
    assert capped.loss == pytest.approx(14 * 512, rel=0.01)


def test_work_is_told_by_part_and_direction() -> None:
    shape = load_model_shape("1.1B")
    layer = only_layer(shape)
    h, f, tokens = shape.hidden_size, shape.intermediate_size, 2 * SEQ_LEN
    forward, backward = layer.forward["mlp"], layer.backward["mlp"]

    assert sum(m.m * m.n * m.k * m.count for m in forward.matmuls) == 3 * tokens * h * f
    assert sum(m.m * m.n * m.k * m.count for m in backward.matmuls) == 6 * tokens * h * f
    assert {m.tokens_on for m in backward.matmuls} == {"m", "k"}
    # The activation and the product with the gate: two read and written, three read or written.
    assert forward.traffic_bytes == 2 * tokens * 5 * f
    assert forward.num_kernels == 5
    attention = layer.forward["attention"].attention_flops
    assert attention == 2 * 2 * SEQ_LEN**2 * h
    assert layer.backward["attention"].attention_flops == 2.5 * attention


def test_a_profile_goes_through_json() -> None:
    profile = trace(load_model_shape("tiny"), SDPA, SEQ_LEN)

    assert ModelProfile.from_dict(profile.to_dict()) == profile
