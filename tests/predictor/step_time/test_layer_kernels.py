"""Kernels and bytes of a layer, held against the operations that torch dispatches."""

from __future__ import annotations

from typing import Any

import pytest

from autotune.predictor.step_time.layer_kernels import layer_kernels
from autotune.question.workload import ModelShape

HIDDEN, WIDTH, HEADS, KEY_HEADS, TOKENS, VOCAB = 256, 704, 4, 2, 64, 64
MOVES_NOTHING = (
    *("view", "transpose", "t.default", "expand", "slice", "split", "unsqueeze", "squeeze"),
    *("permute", "detach", "select", "alias", "as_strided", "_unsafe_view", "chunk", "unbind"),
    *("lift", "empty", "_reshape"),
)
MODEL_TYPES = (
    *("llama", "qwen2", "qwen3", "gemma", "gemma3_text", "stablelm", "gpt_neox", "phi"),
)
PRODUCTS = ("mm", "scaled_dot", "embedding")


def shape(model_type: str) -> ModelShape:
    has_groups = model_type not in ("gpt_neox", "phi")
    return ModelShape(
        name=model_type,
        model_type=model_type,
        hidden_size=HIDDEN,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS if has_groups else HEADS,
        head_dim=HIDDEN // HEADS,
        vocab_size=VOCAB,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        embedding_size=HIDDEN,
    )


def dispatched(model_type: str, num_layers: int) -> tuple[int, int]:
    """Kernels of one forward on the CPU at 16 bit, and bytes of those that are no products."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from transformers import AutoConfig, AutoModelForCausalLM

    class Count(TorchDispatchMode):
        num_kernels = num_bytes = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            name = str(func).removeprefix("aten.")
            if not name.startswith(MOVES_NOTHING):
                self.num_kernels += 1
                if not any(part in name for part in PRODUCTS):
                    tensors = tree_leaves((args, kwargs, out))
                    self.num_bytes += sum(
                        t.numel() * t.element_size()
                        for t in tensors
                        if isinstance(t, torch.Tensor)
                    )
            return out

    sizes: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "intermediate_size": WIDTH,
        "num_hidden_layers": num_layers,
        "num_attention_heads": HEADS,
        "vocab_size": VOCAB,
        "pad_token_id": 0,
    }
    if model_type not in ("gpt_neox", "phi"):
        sizes |= {"num_key_value_heads": KEY_HEADS, "head_dim": HIDDEN // HEADS}
    config = AutoConfig.for_model(model_type, **sizes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    model.to(torch.bfloat16).train()
    samples = torch.randint(1, VOCAB, (1, TOKENS))
    model(samples)
    with Count() as count:
        model(samples)
    return count.num_kernels, count.num_bytes


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_layer_runs_the_kernels_and_moves_the_bytes_that_are_counted(model_type: str) -> None:
    one, three = dispatched(model_type, 1), dispatched(model_type, 3)
    num_kernels, num_bytes = ((many - few) / 2 for few, many in zip(one, three, strict=True))
    layer, of = layer_kernels(shape(model_type), 1, is_fused=False), shape(model_type)

    products = len(of.attention_linears) + len(of.mlp_linears) + 1
    kernels = products + layer.norm_kernels + layer.attention_kernels
    kernels += layer.mlp_kernels + layer.residual_kernels
    moved = layer.norm_bytes + layer.attention_bytes + layer.mlp_bytes + layer.residual_bytes
    assert kernels == pytest.approx(num_kernels, rel=0.06)
    assert moved * TOKENS == pytest.approx(num_bytes, rel=0.1)


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma"])
def test_fused_kernels_are_fewer_and_move_less(model_type: str) -> None:
    plain, fused = (layer_kernels(shape(model_type), 1, is_fused=f) for f in (False, True))

    assert fused.norm_kernels < plain.norm_kernels
    assert fused.norm_bytes < plain.norm_bytes
    assert fused.attention_bytes < plain.attention_bytes
    assert fused.mlp_bytes < plain.mlp_bytes
    assert fused.residual_bytes == plain.residual_bytes


def test_tensor_parallelism_divides_what_is_not_norm_or_residual() -> None:
    whole, half = (layer_kernels(shape("llama"), size, is_fused=False) for size in (1, 2))

    assert half.attention_bytes == whole.attention_bytes / 2
    assert half.mlp_bytes == whole.mlp_bytes / 2
    assert (half.norm_bytes, half.residual_bytes) == (whole.norm_bytes, whole.residual_bytes)
