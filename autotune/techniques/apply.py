"""Puts on a model what a DeepSpeed JSON cannot hold: kernels, LoRA, checkpointing, optimizer.

The trials and the user's own training go through the same functions here, so what was measured is
what is shipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from autotune.errors import ConfigError
from autotune.knob_values import Attention, Batching
from autotune.question.adapter_targets import read_targets
from autotune.question.workload import Method
from autotune.space.strategy import Strategy
from autotune.space.strategy_file import read_strategy_file
from autotune.techniques.adapters import wrap_lora
from autotune.techniques.blocks import decoder_layers, mlp_blocks
from autotune.techniques.checkpointing import checkpoint_activations
from autotune.techniques.compilation import compile_layers
from autotune.techniques.joined_attention import attend_in_samples
from autotune.techniques.kernels import choose_attention, choose_experts, patch_kernels
from autotune.techniques.loss_tiles import tile_loss
from autotune.techniques.mlp_tiles import tile_mlps
from autotune.techniques.optimizers import build_optimizer
from autotune.techniques.precision import set_precisions
from autotune.techniques.sequence_parallel import divide_attention
from autotune.techniques.towers import freeze_towers, language_config

__all__ = ["apply", "apply_strategy", "create_optimizer"]


def apply(model: nn.Module, strategy_file: str | Path) -> nn.Module:
    """Put an exported strategy on a model, before `deepspeed.initialize`.

    Patches in the fused kernels, wraps with LoRA adapters, sets the checkpointing of activations.
    Of a vision-language model all but its language part is frozen, unless the file says that its
    tower is trained.

    Args:
        model: a causal language model of transformers, or a vision-language model that has one,
            on any device; changed in place.
        strategy_file: the `strategy.yaml` of an export.

    Returns:
        The model to train: the same object, or PEFT's wrapper around it for LoRA.

    Raises:
        ConfigError: the file is wrong, or the model cannot take the strategy.
    """
    exported = read_strategy_file(Path(strategy_file))
    if exported.strategy.pipeline_parallel_size > 1:
        raise ConfigError(
            f"pipeline_parallel_size {exported.strategy.pipeline_parallel_size}: call "
            "autotune.pipeline instead of autotune.apply"
        )
    return apply_strategy(
        model,
        exported.strategy,
        method=exported.method,
        lora_targets=exported.lora_targets,
        trains_tower=exported.trains_tower,
    )


def create_optimizer(model: nn.Module, strategy_file: str | Path) -> torch.optim.Optimizer | None:
    """The optimizer to hand to `deepspeed.initialize`, or None where the JSON names it.

    Args:
        model: what `apply` returned.
        strategy_file: the `strategy.yaml` of an export.

    Raises:
        ConfigError: the file is wrong.
    """
    exported = read_strategy_file(Path(strategy_file))
    if exported.learning_rate is None:
        return None
    return build_optimizer(model, exported.strategy, exported.learning_rate)


def apply_strategy(
    model: nn.Module,
    strategy: Strategy,
    *,
    method: Method,
    lora_targets: tuple[str, ...],
    trains_tower: bool = False,
) -> nn.Module:
    """As `apply`, with the strategy itself."""
    config: Any = language_config(model)
    num_layers = int(config.num_hidden_layers)
    if not trains_tower:
        freeze_towers(model)
    # A cache of keys and values is for generation; in training it only holds memory.
    model.config.use_cache = config.use_cache = False  # type: ignore[union-attr]
    for module in model.modules():
        # The strategy says what is recomputed; transformers' own switch would add to it.
        if getattr(module, "gradient_checkpointing", False):
            module.gradient_checkpointing = False  # type: ignore[assignment]
    choose_attention(model, strategy.attention)
    if strategy.batching is not Batching.PADDED and strategy.attention is Attention.SDPA:
        attend_in_samples(model)
    choose_experts(model, strategy.experts_implementation)
    if strategy.fused_kernels:
        patch_kernels(model)
    set_precisions(model, strategy)
    if method is not Method.FULL:
        model = wrap_lora(
            model,
            decoder_layers(model, num_layers),
            rank=strategy.lora_rank,
            alpha=strategy.lora_alpha,
            targets=read_targets(strategy.lora_targets) or lora_targets,
        )
    if strategy.mlp_tiles > 1:
        tile_mlps(mlp_blocks(decoder_layers(model, num_layers)), strategy.mlp_tiles)
    if strategy.loss_tiles > 1:
        tile_loss(model, strategy.loss_tiles)
    if strategy.checkpoint_interval:
        checkpoint_activations(decoder_layers(model, num_layers), strategy)
    if strategy.sequence_parallel_size > 1:
        divide_attention(model, strategy)
    if strategy.torch_compile:
        compile_layers(decoder_layers(model, num_layers))
    return model
