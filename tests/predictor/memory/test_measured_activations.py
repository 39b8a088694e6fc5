"""Predicted activations against the tensors that autograd keeps, of a real model on the CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from autotune.predictor.memory.activations import token_bytes
from autotune.question.workload import Method, Workload, load_model_shape
from autotune.space.strategy import Strategy
from autotune.techniques.apply import apply_strategy
from autotune.worker.model import build_model

pytestmark = pytest.mark.slow

SEQ_LEN = 128
NUM_SAMPLES = 2
LORA = {"lora_rank": 4}


def kept_bytes(num_layers: int, strategy: Strategy) -> int:
    """What a forward of `tiny` with so many layers keeps, without weights, each storage once."""
    base = load_model_shape("tiny")
    config = {**base.config, "num_hidden_layers": num_layers}
    workload = Workload(
        model=replace(base, num_hidden_layers=num_layers, config=config),
        seq_len=SEQ_LEN,
        global_batch_size=NUM_SAMPLES,
        method=Method.LORA if strategy.lora_rank else Method.FULL,
    )
    model = build_model(
        workload, strategy, device=torch.device("cpu"), deepspeed_config={}, seed=0
    )
    model = apply_strategy(
        model, strategy, method=workload.method, lora_targets=workload.lora_targets
    )
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    tokens = torch.randint(0, 100, (NUM_SAMPLES, SEQ_LEN))

    def forward() -> tuple[int, torch.Tensor]:
        kept: dict[int, torch.Tensor] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if (place := tensor.untyped_storage().data_ptr()) not in weights:
                kept[place] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()), loss

    # Checkpoints over several layers keep more in the first forward.
    forward()[1].backward()
    return forward()[0]


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"precision": "fp32"},
        {"attention": "eager"},
        {"mlp_tiles": 4},
        {"checkpoint_interval": 1, "checkpoint_scope": "attention"},
        {"checkpoint_interval": 1, "checkpoint_scope": "mlp"},
        {"mlp_precision": "fp32"},
        {"norm_precision": "fp32"},
        {"embedding_precision": "fp32", "lm_head_precision": "fp32"},
        LORA,
        LORA | {"lora_targets": "attention"},
        LORA | {"attention": "eager", "mlp_tiles": 2},
    ],
    ids=str,
)
def test_a_layer_keeps_what_is_predicted(knobs: dict[str, Any]) -> None:
    strategy = Strategy.from_dict(knobs)
    layers = kept_bytes(4, strategy) - kept_bytes(2, strategy)
    token = token_bytes(
        load_model_shape("tiny"),
        strategy,
        lora_targets=(strategy.lora_targets or "all-linear",),
        seq_len=SEQ_LEN,
        is_cpu=True,
    )

    # Beyond it, the fp32 scale of each token in either norm.
    measured = layers / 2 / (NUM_SAMPLES * SEQ_LEN)
    assert measured == pytest.approx(token.layer + 8, rel=0.005)
