"""The optimizers that DeepSpeed cannot build from its JSON, and which are handed to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from autotune.deepspeed_config import is_client_optimizer
from autotune.knobs import Optimizer
from autotune.strategy import Strategy

__all__ = ["build_optimizer"]


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
