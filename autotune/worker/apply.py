"""What a DeepSpeed JSON cannot hold, put on a model: kernels, LoRA, checkpointing, optimizer.

The trials and the user's own training go through the same functions here, so what was measured is
what is shipped.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autotune.deepspeed_config import is_client_optimizer
from autotune.errors import ConfigError
from autotune.strategy import Optimizer, Strategy
from autotune.strategy_file import read_strategy_file
from autotune.worker.checkpointing import checkpoint_layers, decoder_layers
from autotune.workload import ALL_LINEAR, Method

__all__ = ["apply", "apply_strategy", "build_optimizer", "create_optimizer"]


def apply(model: nn.Module, strategy_file: str | Path) -> nn.Module:
    """Put an exported strategy on a model, before `deepspeed.initialize`.

    Patches in the fused kernels, wraps with LoRA adapters, sets the checkpointing of activations.

    Args:
        model: a causal language model of transformers, on any device; changed in place.
        strategy_file: the `strategy.yaml` of an export.

    Returns:
        The model to train: the same object, or PEFT's wrapper around it for LoRA.

    Raises:
        ConfigError: the file is wrong, or the model cannot take the strategy.
    """
    exported = read_strategy_file(Path(strategy_file))
    return apply_strategy(
        model, exported.strategy, method=exported.method, lora_targets=exported.lora_targets
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
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return build_optimizer(trainable, exported.strategy, exported.learning_rate)


def apply_strategy(
    model: nn.Module, strategy: Strategy, *, method: Method, lora_targets: tuple[str, ...]
) -> nn.Module:
    """As `apply`, with the strategy itself."""
    config: Any = model.config
    num_layers = int(config.num_hidden_layers)
    # A cache of keys and values is for generation; in training it only holds memory.
    config.use_cache = False
    for module in model.modules():
        # The strategy says what is recomputed; transformers' own switch would add to it.
        if getattr(module, "gradient_checkpointing", False):
            module.gradient_checkpointing = False  # type: ignore[assignment]
    if strategy.fused_kernels:
        _patch_kernels(model)
    if method is not Method.FULL:
        model = _wrap_lora(model, strategy.lora_rank, lora_targets)
    if strategy.checkpoint_interval:
        checkpoint_layers(decoder_layers(model, num_layers), strategy.checkpoint_interval)
    return model


def build_optimizer(
    parameters: Iterable[nn.Parameter], strategy: Strategy, learning_rate: float
) -> torch.optim.Optimizer | None:
    """The optimizer that DeepSpeed cannot build from its JSON; None for all others.

    DeepSpeed has a Lion of its own, which compiles an extension; bitsandbytes' comes compiled.
    """
    if not is_client_optimizer(strategy):
        return None
    from bitsandbytes import optim

    kinds: dict[Optimizer, Any] = {
        Optimizer.ADAMW_8BIT: optim.AdamW8bit,
        Optimizer.LION: optim.Lion,
        Optimizer.LION_8BIT: optim.Lion8bit,
    }
    optimizer: torch.optim.Optimizer = kinds[strategy.optimizer](
        parameters, lr=learning_rate, weight_decay=0.0
    )
    return optimizer


def _patch_kernels(model: nn.Module) -> None:
    """Liger's kernels on this instance; must come before PEFT wraps it, which Liger refuses."""
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
    except ImportError as error:
        raise ConfigError("fused_kernels needs Liger: pip install 'autotune[liger]'") from error
    _apply_liger_kernel_to_instance(model=model)


def _wrap_lora(model: nn.Module, rank: int, targets: tuple[str, ...]) -> nn.Module:
    """PEFT's adapters, in the precision of the base model, alpha at twice the rank."""
    from peft import LoraConfig, PeftModel, get_peft_model

    is_wrapped = isinstance(model, PeftModel)
    if is_wrapped:
        return model
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=ALL_LINEAR if ALL_LINEAR in targets else list(targets),
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    wrapped: nn.Module = get_peft_model(model, config, autocast_adapter_dtype=False)
    return wrapped
