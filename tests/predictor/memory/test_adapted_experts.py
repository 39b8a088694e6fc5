"""Adapted weights of routed experts are kept as the code keeps them, once for all tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autotune.knob_values import Attention
from autotune.predictor.memory.adapted_experts import adapted_bytes
from autotune.predictor.memory.token_model import TokenModel
from autotune.profile.trace import trace
from autotune.profile.variant import Variant
from autotune.question.workload import Method, Workload, load_model_shape
from autotune.space.strategy import Strategy

FIELDS = {
    "model_type": "mixtral",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 256,
    "max_position_embeddings": 1024,
}
TARGETS = ("attention", "experts")


@pytest.fixture
def workload(tmp_path: Path) -> Workload:
    (tmp_path / "config.json").write_text(json.dumps(FIELDS))
    return Workload(
        model=load_model_shape(str(tmp_path)),
        seq_len=64,
        global_batch_size=8,
        method=Method.LORA,
        lora_targets=TARGETS,
    )


def test_a_layer_keeps_its_adapted_weights_as_is_traced(workload: Workload) -> None:
    kept = []
    for targets in (("attention",), TARGETS):
        variant = Variant(
            attention=Attention.SDPA, element_bytes=2, lora_rank=4, lora_targets=targets
        )
        [layer] = trace(workload.model, variant, 64).layers
        kept.append(sum(group.token_bytes for group in layer.saved) * 2 * 64)
    size = adapted_bytes(workload, Strategy(lora_rank=4))
    assert size == 2 * 8 * 3 * 128 * 256
    # And the rows of two experts that gradients of weights need: of gate and up, and of down.
    rows = 2 * 64 * 2 * 2 * (128 + 256)
    assert kept[1] - kept[0] == pytest.approx(size + rows, rel=0.01)


def test_they_do_not_grow_with_the_batch(workload: Workload) -> None:
    model = TokenModel(workload, is_cpu=False, traces=False)
    plain = TokenModel(
        Workload(
            model=workload.model,
            seq_len=64,
            global_batch_size=8,
            method=Method.LORA,
            lora_targets=("attention",),
        ),
        is_cpu=False,
        traces=False,
    )
    size = adapted_bytes(workload, Strategy(lora_rank=4))
    for samples in (1, 2, 8):
        strategy = Strategy(micro_batch_size=samples, lora_rank=4)
        more = model.of(strategy).layer - plain.of(strategy).layer
        rows = 2 * 2 * (128 + 256)
        assert (more - rows) * samples * 64 == pytest.approx(size, rel=0.05)
