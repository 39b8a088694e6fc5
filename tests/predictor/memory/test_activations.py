from __future__ import annotations

from typing import Any

import pytest

from autotune.predictor.memory.activations import TokenBytes, token_bytes
from autotune.question.workload import load_model_shape
from autotune.space.strategy import Strategy


def bytes_of(
    model: str,
    *,
    seq_len: int = 1024,
    lora_targets: tuple[str, ...] = ("all-linear",),
    **knobs: Any,
) -> TokenBytes:
    strategy = Strategy.from_dict({"zero_stage": 1} | knobs)
    shape = load_model_shape(model)
    return token_bytes(shape, strategy, lora_targets=lora_targets, seq_len=seq_len)


def test_liger_saves_the_growth_that_was_measured() -> None:
    # 1.1B on one H100, micro-batch 16 to 32 at sequence 1024: 20.22 GiB for 16,384 tokens.
    token = bytes_of("1.1B", fused_kernels=True)
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


def test_eager_attention_keeps_scores_of_every_head_in_fp32_and_as_computed() -> None:
    shape = load_model_shape("7B")
    sdpa, eager = (bytes_of("7B", attention=name) for name in ("sdpa", "eager"))

    # As many heads of keys as of queries: the log-sum-exp goes, the scores come.
    heads = shape.num_attention_heads
    assert eager.layer - sdpa.layer == heads * 1024 * (4 + 2) - 4 * heads
    assert eager.layer_backward > sdpa.layer_backward
    assert bytes_of("7B", attention="flash_attention_2") == sdpa


def test_eager_attention_keeps_keys_for_each_query_head() -> None:
    shape = load_model_shape("1.1B")
    assert shape.num_key_value_heads < shape.num_attention_heads
    sdpa, eager = (bytes_of("1.1B", seq_len=1, attention=name) for name in ("sdpa", "eager"))

    repeated = shape.num_attention_heads - shape.num_key_value_heads
    scores = shape.num_attention_heads * 6
    flash = 4 * shape.num_attention_heads
    assert eager.layer - sdpa.layer == 2 * 2 * repeated * shape.head_dim + scores - flash


@pytest.mark.parametrize("scope", ["attention", "mlp"])
def test_a_checkpointed_part_keeps_its_input_and_is_recomputed_one_at_a_time(scope: str) -> None:
    plain = bytes_of("7B")
    part = bytes_of("7B", checkpoint_interval=1, checkpoint_scope=scope)

    assert part.layer < plain.layer
    assert part.layer + part.recomputed == plain.layer + plain.layer_input
    assert part.recomputed > part.layer_input


def test_inputs_of_checkpointed_parts_wait_on_the_host() -> None:
    knobs: dict[str, Any] = {"checkpoint_interval": 1, "checkpoint_scope": "mlp"}
    here, away = (bytes_of("7B", **knobs, offload_checkpoints=p) for p in ("none", "cpu"))

    assert here.layer - away.layer == away.host_layer == away.layer_input
    assert here.host_layer == 0


def test_the_host_is_the_device_on_a_cpu() -> None:
    strategy = Strategy.from_dict(
        {"checkpoint_interval": 1, "checkpoint_scope": "mlp", "offload_checkpoints": "cpu"}
    )
    token = token_bytes(
        load_model_shape("7B"), strategy, lora_targets=(), seq_len=1024, is_cpu=True
    )

    assert token == bytes_of("7B", checkpoint_interval=1, checkpoint_scope="mlp")


def test_tiles_divide_what_is_alive_in_an_mlp() -> None:
    whole, two, four = (bytes_of("7B", mlp_tiles=n) for n in (1, 2, 4))

    assert two.layer == four.layer < whole.layer
    assert four.recomputed == two.recomputed // 2
    assert four.layer_backward < two.layer_backward < whole.layer_backward


def test_tiles_divide_the_logits() -> None:
    whole, two, eight = (bytes_of("7B", loss_tiles=n) for n in (1, 2, 8))
    vocabulary = 12 * load_model_shape("7B").vocab_size

    assert whole.loss == vocabulary
    assert two.loss - eight.loss == vocabulary // 2 - vocabulary // 8


def test_tensor_parallelism_divides_heads_and_width_but_not_what_enters_a_layer() -> None:
    whole, half = (bytes_of("7B", tensor_parallel_size=n) for n in (1, 2))
    shape = load_model_shape("7B")

    assert half.layer_input == whole.layer_input
    inside = 2 * 4 * shape.num_attention_heads * shape.head_dim + 4 * shape.num_attention_heads
    inside += 2 * 4 * shape.intermediate_size
    assert whole.layer - half.layer == inside // 2
    # The head gathers its logits, unless it shares the embedding's weights.
    assert half.loss == whole.loss


def test_tensor_parallelism_divides_logits_where_the_head_shares_the_embedding() -> None:
    assert load_model_shape("125M").tie_word_embeddings
    whole, half = (bytes_of("125M", tensor_parallel_size=n) for n in (1, 2))

    assert half.loss == whole.loss // 2


def test_compiled_layers_keep_what_fused_ones_do_but_all_logits() -> None:
    plain, fused = bytes_of("7B"), bytes_of("7B", fused_kernels=True)
    compiled = bytes_of("7B", torch_compile=True)

    assert compiled.layer == fused.layer < plain.layer
    assert compiled.loss == plain.loss > fused.loss


def test_a_group_in_fp32_keeps_twice_as_much_and_fp8_no_less() -> None:
    plain, wide = bytes_of("7B"), bytes_of("7B", mlp_precision="fp32")
    shape = load_model_shape("7B")

    assert wide.layer - plain.layer == 2 * (4 * shape.intermediate_size + shape.hidden_size)
    assert bytes_of("7B", mlp_precision="fp8") == plain


def test_grouped_heads_in_fp32_leave_no_kernel_that_keeps_scores_in_tiles() -> None:
    shape = load_model_shape("1.1B")
    row = 4 * shape.num_attention_heads * 1024

    assert bytes_of("1.1B", precision="fp32").layer > 2 * bytes_of("1.1B").layer
    assert bytes_of("1.1B", precision="fp32").layer > row
    # As many heads of keys as of queries: the memory-efficient kernel takes fp32.
    assert bytes_of("7B", precision="fp32").layer <= 2 * bytes_of("7B").layer
