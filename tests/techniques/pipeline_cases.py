"""Small models of the architectures that pipelines are proven for, whole and in stages."""

from __future__ import annotations

from typing import Any

import torch
from small_models import small_workload
from torch import nn

from autotune.machine.hardware import DeviceType
from autotune.question.workload import Workload
from autotune.space.compatibility.attention import plain_attention
from autotune.space.deepspeed_config import deepspeed_config
from autotune.space.strategy import Strategy
from autotune.worker.model import build_model

_SIZES: dict[str, Any] = {"vocab_size": 512, "hidden_size": 96, "intermediate_size": 256}

PIPELINED = (
    *("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "phi", "phi3"),
    *("mixtral", "gpt_neox", "gpt2", "opt", "opt, projected"),
)

_CHANGES: dict[str, dict[str, Any]] = {
    # OPT-350M has projections beside the embedding, and its norms after each block.
    "opt, projected": {"word_embed_proj_dim": 48, "do_layer_norm_before": False},
}


def pipeline_workload(name: str = "llama", **changes: Any) -> Workload:
    """A model of four layers, 32 tokens a sample."""
    changes = _SIZES | _CHANGES.get(name, {}) | changes
    return small_workload(name.split(",")[0], **changes)


def build_stage(workload: Workload, num_stages: int, stage: int) -> nn.Module:
    """What one rank holds of the trial's model; of one stage the whole."""
    strategy = Strategy(
        pipeline_parallel_size=num_stages, attention=plain_attention(workload.model.model_type)
    )
    config = deepspeed_config(
        workload, strategy, num_devices=num_stages, device_type=DeviceType.CPU
    )
    return build_model(
        workload,
        strategy,
        device=torch.device("cpu"),
        deepspeed_config=config,
        seed=0,
        stage=stage,
    )
