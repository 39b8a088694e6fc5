"""A small model of each architecture that pipelines are proven for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autotune.deepspeed_config import deepspeed_config
from autotune.hardware import DeviceType
from autotune.knobs import Attention
from autotune.strategy import Strategy
from autotune.strategy_file import StrategyFile
from autotune.worker.model import build_model
from autotune.workload import Method, Workload

SMALL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
GROUPED = SMALL | {"num_key_value_heads": 2, "head_dim": 24}
TIED: dict[str, Any] = {"tie_word_embeddings": True}
OPT = SMALL | TIED | {"ffn_dim": 256, "dropout": 0.0}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "qwen2": GROUPED | TIED,
    "qwen3": GROUPED,
    "mistral": GROUPED | {"sliding_window": 16},
    "gemma": GROUPED | TIED,
    "gemma2": GROUPED | TIED | {"sliding_window": 16},
    "gemma3_text": GROUPED | TIED | {"sliding_window": 16},
    "phi": SMALL,
    "phi3": GROUPED,
    "mixtral": GROUPED | {"num_local_experts": 4},
    "gpt_neox": SMALL,
    "gpt2": SMALL
    | TIED
    | {"n_inner": 256, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    | {"attn_pdrop": 0.0},
    "opt": OPT | {"word_embed_proj_dim": 96},
    # OPT-350M has projections beside the embedding, and its norms after each block.
    "opt, projected": OPT | {"word_embed_proj_dim": 48, "do_layer_norm_before": False},
}


def small_workload(tiny: Workload, name: str = "llama", **fields: Any) -> Workload:
    config = {"model_type": name.split(",")[0]} | CONFIGS[name] | fields
    shape = replace(
        tiny.model,
        model_type=config["model_type"],
        tie_word_embeddings=config.get("tie_word_embeddings", False),
        config=config,
    )
    return replace(tiny, model=shape)


def build_stage(workload: Workload, num_stages: int, stage: int) -> nn.Module:
    """What one rank holds of the trial's model; of one stage the whole."""
    attention = Attention.EAGER if workload.model.model_type == "gemma2" else Attention.SDPA
    strategy = Strategy(pipeline_parallel_size=num_stages, attention=attention)
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


def write_strategy(folder: Path, strategy: Strategy) -> Path:
    """A strategy as an export has it."""
    exported = StrategyFile(
        model="mine",
        seq_len=32,
        global_batch_size=8,
        method=Method.FULL,
        lora_targets=("all-linear",),
        learning_rate=1e-3,
        strategy=strategy,
    )
    path = folder / "strategy.yaml"
    path.write_text(exported.to_yaml())
    return path
